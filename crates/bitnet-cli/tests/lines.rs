//! `bitnet run --prompt-file`

use std::fs;
use std::path::PathBuf;

use crate::{call, call_with_stdin, json, quiet_success};

const PROMPTS: [&str; 5] = [
    "Once upon a time, in a small village,",
    "The fox",
    "",
    "One day a little snail saw a robot. The robot said \\o/",
    "Tom",
];

/// A file of prompts, which is gone with the folder.
fn file(folder: &tempfile::TempDir, lines: &[&str]) -> PathBuf {
    let path = folder.path().join("prompts.txt");
    fs::write(&path, lines.join("\r\n") + "\r\n").unwrap();
    path
}

#[test]
fn each_line_has_the_answer_that_it_has_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(&folder, &PROMPTS);
    let path = path.to_str().unwrap();
    for flags in [
        &["--raw", "--max-tokens", "40"][..],
        &["--raw", "--max-tokens", "12", "--temperature", "0.9", "--seed", "4"],
        &["--temperature", "0.5", "--seed", "1", "--stop", " the"],
        &["--raw", "--context", "60"],
    ] {
        let alone: Vec<_> = PROMPTS
            .iter()
            .map(|prompt| json(&quiet_success(&[&["run", "--json", "--prompt", prompt], flags].concat())))
            .collect();
        for batch in ["1", "2", "8", "100"] {
            let run = ["run", "--quiet", "--prompt-file", path, "--batch", batch];
            let plain = quiet_success(&[&run, flags].concat());
            let escaped = |text: &str| text.replace('\\', "\\\\").replace('\n', "\\n");
            let want: Vec<String> = alone.iter().map(|a| escaped(a["text"].as_str().unwrap())).collect();
            assert_eq!(plain.lines().collect::<Vec<_>>(), want, "{batch} rows, {flags:?}");
            let objects = quiet_success(&[&run, flags, &["--json"]].concat());
            assert_eq!(objects.lines().count(), PROMPTS.len());
            for ((object, alone), prompt) in objects.lines().map(json).zip(&alone).zip(PROMPTS) {
                assert_eq!(object["prompt"], prompt);
                for key in ["text", "prompt_tokens", "finish_reason", "seed"] {
                    assert_eq!(object[key], alone[key], "{key}");
                }
                assert!(
                    object["tokens"].as_array().unwrap().len() as u64
                        <= alone["generated_tokens"].as_u64().unwrap()
                );
            }
        }
    }
}

#[test]
fn prompts_come_from_standard_input_too() {
    let args = ["run", "--raw", "--prompt-file", "-", "--max-tokens", "3"];
    let output = call_with_stdin(&args, "The fox\nTom");
    assert_eq!((output.status, output.stdout.lines().count()), (0, 2), "{}", output.stderr);
    let nothing = call_with_stdin(&args, "");
    assert_eq!((nothing.status, nothing.stdout.as_str()), (0, ""));
}

#[test]
fn a_line_that_is_too_long_is_refused_or_cut() {
    let folder = tempfile::tempdir().unwrap();
    let long = "one two three four five six seven eight nine ten eleven twelve";
    let path = file(&folder, &["Tom", long, "The fox"]);
    let path = path.to_str().unwrap();
    let args = ["run", "--raw", "--prompt-file", path, "--context", "12", "--max-tokens", "4"];
    // The other lines have the answers that they have without it.
    let refused = call(&[&args[..], &["--quiet"]].concat());
    let alone = |prompt: &str| {
        let one = ["run", "--raw", "--json", "--prompt", prompt, "--context", "12", "--max-tokens", "4"];
        json(&quiet_success(&one))["text"].as_str().unwrap().replace('\n', "\\n")
    };
    let want = format!("{}\n\n{}\n", alone("Tom"), alone("The fox"));
    assert_eq!((refused.status, refused.stdout), (1, want));
    let said: Vec<&str> = refused.stderr.lines().collect();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("prompts.txt: line 2: ") && said[0].contains("--context"), "{said:?}");
    assert_eq!(said[1], "bitnet: error: 1 of 3 lines have no answer");
    let objects = call(&[&args[..], &["--quiet", "--json"]].concat());
    let second = json(objects.stdout.lines().nth(1).unwrap());
    assert!(second["error"].as_str().unwrap().contains("do not fit"), "{second}");
    let tokens = |side| {
        let output = quiet_success(&[&args[..], &["--json", "--truncate", side]].concat());
        let cut = json(output.lines().nth(1).unwrap());
        assert_eq!((&cut["prompt_tokens"], cut["tokens"].as_array().unwrap().len()), (&9.into(), 4));
        cut["tokens"].clone()
    };
    assert_ne!(tokens("left"), tokens("right"));
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let output = call(&["run", "--prompt-file", "no/such/file"]);
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("no/such/file"), "{}", output.stderr);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bytes");
    fs::write(&path, [0xff, b'\n']).unwrap();
    let output = call(&["run", "--prompt-file", path.to_str().unwrap()]);
    assert_eq!(output.status, 1);
    assert!(output.stderr.contains("bytes: ") && output.stderr.contains("UTF-8"), "{}", output.stderr);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_the_answers_as_far_as_they_go() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Command, Stdio};

    let folder = tempfile::tempdir().unwrap();
    let mut lines = vec!["Once upon a time there was a fox"; 3];
    lines.extend(["Tom"; 400]);
    let path = file(&folder, &lines);
    let args = ["run", "--raw", "--quiet", "--json", "--max-tokens", "60", "--batch", "1", "--prompt-file"];
    let mut command = crate::bitnet(&[&args[..], &[path.to_str().unwrap()]].concat());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut first = String::new();
    stdout.read_line(&mut first).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    let output = crate::output(child.wait_with_output().unwrap());
    assert_eq!((output.status, output.stderr.as_str()), (1, "bitnet: error: interrupted\n"));
    let objects: Vec<_> = std::iter::once(first.as_str()).chain(rest.lines()).map(json).collect();
    assert!(objects.len() < lines.len());
    assert_eq!(objects[0]["finish_reason"], "length");
    // The interrupt may come between two answers.
    let (last, whole) = objects.split_last().unwrap();
    assert!(["length", "stop", "interrupted"].iter().any(|reason| last["finish_reason"] == *reason));
    assert!(whole.iter().all(|answer| answer["finish_reason"] != "interrupted"));
}
