//! Help texts, as they are printed where no terminal says how wide it is.

use crate::quiet_success;

#[test]
fn help_of_the_program_and_of_every_subcommand() {
    insta::assert_snapshot!("bitnet", quiet_success(&["--help"]));
    for subcommand in [
        "run",
        "chat",
        "inspect",
        "convert",
        "quantize",
        "synth",
        "bench",
        "devices",
        "precision",
        "logits",
        "tokenize",
        "completions",
    ] {
        let help = quiet_success(&[subcommand, "--help"]);
        assert!(help.contains("Examples:\n  "), "{subcommand} shows how it is used");
        insta::assert_snapshot!(subcommand, help);
    }
    insta::assert_snapshot!("bench_packing", quiet_success(&["bench", "packing", "--help"]));
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = quiet_success(&["completions", shell]);
        assert!(script.contains("tokenize") && script.contains("max-tokens"), "{shell}");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(quiet_success(&["--version"]), format!("bitnet {}\n", env!("CARGO_PKG_VERSION")));
}
