//! The ARM kernels on a machine that is not ARM: cross-compiled, and their tests run under qemu.
//!
//! Correctness only; times under qemu say nothing. Two processors are emulated, so that the kernels with the
//! dot-product instructions and those without both run.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::ci::Outcome;
use crate::command::{cargo, command, output, run, succeeds};
use crate::error::Error;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";
/// `max` has dotprod and i8mm, `cortex-a53` has neither.
const CPUS: [&str; 2] = ["max", "cortex-a53"];
/// The kernels whole; of the engine, small models against the references and the oracle: the stories model takes many
/// minutes under qemu.
const TESTS: [(&str, &[&str], &[&str]); 2] = [
    ("bitnet-quant", &["--lib"], &[]),
    (
        "bitnet-inference",
        &["--test", "main"],
        &["goldens::bitnet_offline", "goldens::qwen3", "equality::block_scales"],
    ),
];
/// qemu is an order of magnitude slower; the full number of generated cases runs natively.
const PROPTEST_CASES: &str = "32";

/// A compiler that has the standard library of the target.
enum Toolchain {
    /// The one on the path, with the target added by rustup.
    Default,
    /// The distribution's, beside rustup's: for machines where rustup cannot download the target.
    System,
}

pub(crate) fn check() -> Result<Outcome, Error> {
    for (program, package) in [(EMULATOR, "qemu-user"), (LINKER, "gcc-aarch64-linux-gnu")] {
        if !succeeds(command(program, ["--version"])) {
            return Ok(Outcome::Skipped(format!("{program} is not installed (apt-get install {package})")));
        }
    }
    let Some(toolchain) = Toolchain::find() else {
        return Ok(Outcome::Skipped(format!(
            "no compiler has the standard library of {TARGET} (rustup target add {TARGET}, or Debian's rustc-web \
             and cargo-web with libstd-rust-web-dev:arm64)"
        )));
    };
    for cpu in CPUS {
        for (package, targets, filters) in TESTS {
            run(toolchain.test(cpu, package, targets, filters))?;
        }
    }
    Ok(Outcome::Done)
}

impl Toolchain {
    fn find() -> Option<Self> {
        [Toolchain::Default, Toolchain::System].into_iter().find(|toolchain| {
            let args = ["--print", "target-libdir", "--target", TARGET];
            let libdir = output(command(toolchain.rustc(), args));
            libdir.is_ok_and(|libdir| has_standard_library(String::from_utf8_lossy(&libdir).trim()))
        })
    }

    fn rustc(&self) -> &'static str {
        match self {
            Toolchain::Default => "rustc",
            Toolchain::System => "/usr/bin/rustc",
        }
    }

    /// `cargo test` for the target on one emulated processor. Only the runner differs between processors, so the
    /// second call compiles nothing.
    fn test(&self, cpu: &str, package: &str, targets: &[&str], filters: &[&str]) -> Command {
        let mut test = match self {
            Toolchain::Default => cargo(["test"]),
            Toolchain::System => {
                let mut test = command("/usr/bin/cargo", ["test"]);
                test.env("RUSTC", "/usr/bin/rustc").env("RUSTDOC", "/usr/bin/rustdoc");
                test
            }
        };
        test.args(["--profile", "emulated", "--target", TARGET, "--target-dir", "target/neon"]);
        test.args(["--package", package]).args(targets);
        test.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
        let runner = format!("{EMULATOR} -L /usr/aarch64-linux-gnu -cpu {cpu}");
        test.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", runner);
        test.env("PROPTEST_CASES", PROPTEST_CASES);
        test.arg("--").args(filters);
        test
    }
}

fn has_standard_library(libdir: &str) -> bool {
    fs::read_dir(Path::new(libdir)).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
    })
}
