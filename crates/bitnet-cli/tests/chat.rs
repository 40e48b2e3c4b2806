//! `bitnet chat` through a pipe, and on a terminal.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{bitnet, call_with_stdin, json};

fn chat(flags: &[&str], stdin: &str) -> crate::Output {
    call_with_stdin(&[&["chat", "--temperature", "0", "--kv", "f32"], flags].concat(), stdin)
}

#[test]
fn each_line_is_answered_and_the_conversation_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.json");
    let name = "What is your name?";
    let stdin = format!("{name}\n\n{name}\n/save {}\n/exit\nnever sent\n", path.display());
    let output = chat(&["--system", "You are a friendly story teller."], &stdin);
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));

    let saved = json(&std::fs::read_to_string(path).unwrap());
    let turns: Vec<(&str, &str)> = saved
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["role"].as_str().unwrap(), m["content"].as_str().unwrap()))
        .collect();
    let roles: Vec<&str> = turns.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    let first = "My name is Teller. I am a tiny story model, and I love to make up stories.";
    assert_eq!((turns[1].1, turns[2].1, turns[3].1), (name, first, name));
    assert_eq!(output.stdout, format!("{first}\n{}\n", turns[4].1));
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "only Linux lists threads with their names")]
fn the_memory_of_a_chat_is_looked_after() {
    let mut command = bitnet(&["chat", "--temperature", "0", "--max-tokens", "60"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    writeln!(stdin, "What is your name?").unwrap();
    assert!(!BufReader::new(stdout).lines().next().unwrap().unwrap().is_empty());
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let names = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    assert_eq!(names.filter(|name| name == "pool cleanup\n").count(), 1);
    drop(stdin);
    let ended = Instant::now();
    assert!(child.wait().unwrap().success());
    assert!(ended.elapsed() < Duration::from_secs(10), "nobody waits for the next cleanup");
}

#[test]
fn commands_answer_on_the_output_and_complain_beside_it() {
    let output = chat(&[], "/help\n/stats\n/nonsense\n/save /no/such/folder/x.json\n");
    assert_eq!(output.status, 0);
    for command in ["/help", "/clear", "/system", "/save", "/stats", "/exit"] {
        assert!(output.stdout.contains(command), "{command}");
    }
    assert!(output.stdout.ends_with("context 0 of 1024 tokens\n"), "{}", output.stdout);
    assert!(output.stderr.starts_with("there is no command /nonsense; /help lists those there are\n"));
    assert!(output.stderr.contains("/no/such/folder/x.json: "), "{}", output.stderr);
}

#[test]
fn lines_are_joined_at_a_backslash() {
    let joined = chat(&[], "tell me a short story\\\nabout a robot and a snail\n/stats\n");
    let plain = chat(&[], "tell me a short story about a robot and a snail\n/stats\n");
    let answers = |output: &crate::Output| output.stdout.matches("generated").count();
    assert_eq!((answers(&joined), answers(&plain)), (1, 1), "one message, one answer");
}

#[test]
fn a_cleared_conversation_begins_anew() {
    let prompt = "tell me a short story about a robot and a snail\n";
    let output = chat(&[], &format!("{prompt}/clear\n{prompt}"));
    let (first, second) = output.stdout.trim_end().split_once('\n').unwrap();
    assert_eq!(first, second);
}

#[test]
fn the_oldest_turn_makes_room_visibly() {
    let stdin = "Tell me a story about a cat\nTell me a story about a dog\n";
    let output = chat(&["--context", "80", "--max-tokens", "40"], stdin);
    assert_eq!(output.status, 0);
    let note = "note: the context is full; the oldest turn is forgotten: \"Tell me a story about a cat\"\n";
    assert_eq!(output.stderr, note);
    let too_long = chat(&["--context", "12"], "Tell me a story about a cat that is much too long\n");
    assert_eq!((too_long.status, too_long.stdout.as_str()), (0, ""));
    assert_eq!(too_long.stderr, "the message is too long for a context of 12 tokens\n");
}

/// The line editor reads as much as the terminal has, and must keep what belongs to later prompts.
#[test]
fn lines_typed_ahead_on_a_terminal_are_answered_in_turn() {
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: `script`, which makes a terminal, is not installed (apt-get install bsdutils)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (saved, program) = (folder.path().join("chat.json"), env!("CARGO_BIN_EXE_bitnet"));
    let mut terminal = Command::new("script")
        .args([
            "--quiet",
            "--command",
            &format!("'{program}' chat --temperature 0 --max-tokens 4"),
            "/dev/null",
        ])
        .env("XDG_DATA_HOME", folder.path())
        .env("TERM", "xterm")
        .env_remove("BITNET_ISA")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let typed = format!("First message\rSecond message\r/save {}\r/exit\r", saved.display());
    terminal.stdin.as_mut().unwrap().write_all(typed.as_bytes()).unwrap();
    assert!(terminal.wait().unwrap().success());
    let saved = json(&std::fs::read_to_string(saved).expect("the third line was obeyed"));
    let said: Vec<&str> =
        saved.as_array().unwrap().iter().step_by(2).map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["First message", "Second message"]);
}
