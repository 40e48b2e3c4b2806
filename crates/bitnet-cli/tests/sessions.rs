//! Sessions, prompts and models that one call keeps for the next.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use bitnet_inference::{Message, Model, SavedSession};

use crate::{call, call_with_stdin, continued, json, quiet_success};

const PROMPT: [&str; 2] = ["--prompt", "tell me a short story about a robot and a snail"];

#[test]
fn an_answer_goes_on_in_another_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let file = path.to_str().unwrap();
    for sampling in [&["--temperature", "0"] as &[&str], &["--temperature", "0.9", "--seed", "5"]] {
        for kv in ["f16", "int8"] {
            let run = |more: &[&str]| quiet_success(&[&["run", "--kv", kv], more].concat());
            let whole = run(&[&PROMPT, sampling, &["--max-tokens", "30"]].concat());
            let begun = run(&[&PROMPT, sampling, &["--max-tokens", "12", "--save-session", file]].concat());
            // How it is sampled, and how keys and values are kept, is known from the file.
            let rest = quiet_success(&["run", "--load-session", file, "--max-tokens", "18"]);
            assert_eq!(begun.trim_end().to_owned() + &rest, whole, "{sampling:?}");
        }
    }
    let other = call(&["run", "--load-session", file, "--kv", "f32"]);
    assert_eq!(other.status, 1);
    assert!(
        other.stderr.contains("its keys and values are i8, those of the session f32"),
        "{}",
        other.stderr
    );
}

#[test]
fn what_is_no_session_is_not_replaced_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let file = path.to_str().unwrap();
    let run = ["run", "--temperature", "0", "--prompt", "a", "--max-tokens", "2", "--save-session"];
    for content in [b"GGUF\x03\0\0\0", &b"notes"[..], b"\x02\0\0\0\0\0\0\0{}"] {
        fs::write(&path, content).unwrap();
        let refused = call(&[&run[..], &[file]].concat());
        assert_eq!((refused.status, refused.stdout.as_str()), (1, ""), "{}", refused.stderr);
        assert!(refused.stderr.contains("is no saved session, and is not replaced"), "{}", refused.stderr);
        assert!(fs::read(&path).unwrap() == content);
    }
    fs::write(&path, "").unwrap();
    for _ in 0..2 {
        quiet_success(&[&run[..], &[file]].concat());
        assert!(SavedSession::is_at(&path));
    }
}

#[test]
fn a_conversation_and_a_text_take_another_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let file = path.to_str().unwrap();
    let greedy = ["run", "--temperature", "0", "--kv", "f32"];
    let first = quiet_success(&[&greedy[..], &PROMPT, &["--save-session", file]].concat());
    let over = call(&["run", "--load-session", file]);
    assert_eq!(over.status, 1);
    assert!(over.stderr.contains("had ended; give a --prompt"), "{}", over.stderr);
    let name = "What is your name?";
    let second = quiet_success(&["run", "--temperature", "0", "--load-session", file, "--prompt", name]);
    let stdin = format!("{}\n{name}\n", PROMPT[1]);
    let chat = call_with_stdin(&["chat", "--temperature", "0", "--kv", "f32"], &stdin);
    assert_eq!(chat.stdout, first + &second);

    let raw = ["run", "--raw", "--max-tokens", "5", "--prompt"];
    quiet_success(&[&raw[..], &["Once upon", "--save-session", file]].concat());
    let refused = call(&["run", "--load-session", file, "--prompt", " a time"]);
    assert_eq!((refused.status, refused.stderr.contains("give --raw")), (1, true), "{}", refused.stderr);
    let object = quiet_success(&[&raw[..], &[" The end.", "--load-session", file, "--json"]].concat());
    assert!(json(&object)["prompt_tokens"].as_u64().unwrap() > 8, "{object}");
}

#[test]
fn a_chat_is_kept_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let args = ["chat", "--temperature", "0", "--quiet", "--session", path.to_str().unwrap()];
    let (first, second) = ("What is your name?\n", "Tell me a story about a cat\n");
    let whole = call_with_stdin(&["chat", "--temperature", "0"], &[first, second].concat());
    let parts = [first, second].map(|line| {
        let output = call_with_stdin(&args, line);
        assert_eq!((output.status, output.stderr.as_str()), (0, ""));
        output.stdout
    });
    assert_eq!(parts.concat(), whole.stdout);
    // Anything else is refused, and stays what it is.
    fs::write(&path, "my notes").unwrap();
    let refused = call_with_stdin(&args, first);
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
    assert_eq!(fs::read_to_string(&path).unwrap(), "my notes");
}

#[test]
fn a_chat_that_says_nothing_leaves_an_answer_to_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let file = path.to_str().unwrap();
    let whole = quiet_success(&[&["run", "--temperature", "0"], &PROMPT[..]].concat());
    let begin = ["run", "--temperature", "0", "--max-tokens", "9", "--save-session", file];
    let begun = quiet_success(&[&begin[..], &PROMPT].concat());
    let bytes = fs::read(&path).unwrap();
    let chat = |stdin| call_with_stdin(&["chat", "--temperature", "0", "--quiet", "--session", file], stdin);
    assert_eq!((chat("").status, chat("/stats\n").status), (0, 0));
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(begun.trim_end().to_owned() + &quiet_success(&["run", "--load-session", file]), whole);
    // Instructions are a change, and so is forgetting.
    for command in ["/system Be brief.\n", "/clear\n"] {
        let before = fs::read(&path).unwrap();
        assert_eq!(chat(command).status, 0);
        assert!(fs::read(&path).unwrap() != before, "{command}");
    }

    let raw = ["run", "--raw", "--max-tokens", "5", "--prompt", "Once upon", "--save-session", file];
    quiet_success(&raw);
    let bytes = fs::read(&path).unwrap();
    let refused = chat("Hello\n");
    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("the saved session is no conversation; give it"), "{}", refused.stderr);
    assert!(fs::read(&path).unwrap() == bytes);
}

/// Whoever kills the program loses what was computed, and nothing of what was said.
#[test]
fn a_killed_chat_has_its_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.session");
    let args = ["chat", "--temperature", "0", "--quiet", "--session", path.to_str().unwrap()];
    let (first, second) = ("What is your name?\n", "Tell me a story about a cat\n");
    let whole = call_with_stdin(&["chat", "--temperature", "0"], &[first, second].concat());
    let mut command = crate::bitnet(&args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(format!("{first}/stats\n").as_bytes()).unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
    let answer = lines.next().unwrap();
    lines.find(|line| line.starts_with("context ")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = SavedSession::open(&path).unwrap();
    assert_eq!((kept.tokens().len(), kept.messages().len()), (0, 2));
    let raw = call(&["run", "--raw", "--prompt", "And", "--load-session", path.to_str().unwrap()]);
    assert!(raw.status == 1 && raw.stderr.contains("use it without --raw"), "{}", raw.stderr);
    let rest = call_with_stdin(&args, second);
    assert_eq!((rest.status, format!("{answer}\n{}", rest.stdout)), (0, whole.stdout));
    let kept = SavedSession::open(&path).unwrap();
    assert!(kept.tokens().len() > 40 && kept.messages().len() == 4);
}

/// Ctrl-C came while a prompt was computed: what is asked next does not come behind a message that nobody answered.
#[test]
fn a_message_without_an_answer_makes_room_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let file = path.to_str().unwrap();
    let model = Model::embedded().unwrap();
    let unanswered = [Message { role: "user".into(), content: PROMPT[1].into() }];
    let save = || {
        let mut session = model.session(Default::default()).unwrap();
        session.extend(&model.text().unwrap().encode_chat(&unanswered).unwrap()).unwrap();
        session.save(&path, None, &unanswered).unwrap();
    };
    let greedy = ["--temperature", "0"];
    let whole = quiet_success(&[&["run"], &greedy[..], &PROMPT].concat());
    save();
    let again = quiet_success(&[&["run", "--load-session", file], &greedy[..], &PROMPT].concat());
    assert_eq!(again, whole);
    save();
    let again = call_with_stdin(
        &[&["chat", "--quiet", "--session", file], &greedy[..]].concat(),
        &format!("{}\n", PROMPT[1]),
    );
    assert_eq!(again.stdout, whole);
    assert_eq!(SavedSession::open(&path).unwrap().messages().len(), 2);
}

/// A context that is not given has room for what was saved and more, whatever it was before; one that is too small is
/// refused before anything is lost.
#[test]
fn the_context_of_a_session_that_goes_on_follows_from_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (model, file) = (path("synth.gguf"), path("s.session"));
    let sizes = ["--dim", "128", "--ffn-dim", "128", "--layers", "1", "--heads", "2", "--vocab", "300"];
    quiet_success(&[&["synth", "--context", "6000", "--output", &model], &sizes[..]].concat());
    let (model, kept) = (["--model", &model], ["--session", &file]);
    let used_and_all = |flags: &[&str]| {
        let chat = call_with_stdin(&[&["chat", "--quiet"], &model[..], &kept, flags].concat(), "/stats\n");
        let words: Vec<usize> = chat.stdout.split(' ').filter_map(|word| word.parse().ok()).collect();
        (words[0], words[1])
    };
    // Words are two tokens each: 1024 more than there are, but no less than 4096 and no more than the model was made for.
    for n_words in [1, 1700, 2750] {
        let prompt = "a ".repeat(n_words);
        let run = ["run", "--max-tokens", "2", "--temperature", "0", "--quiet", "--context", "5700"];
        assert_eq!(
            call(&[&run[..], &model, &["--prompt", &prompt, "--save-session", &file]].concat()).status,
            0
        );
        let (used, all) = used_and_all(&[]);
        assert_eq!((all, used / 1000), ((used + 1024).clamp(4096, 6000), n_words / 500));
        assert_eq!(used_and_all(&["--context", &used.to_string()]), (used, used));

        let bytes = fs::read(&file).unwrap();
        let small = ["--context", &(used - 1).to_string()];
        for refused in [
            call_with_stdin(&[&["chat"], &model[..], &kept, &small].concat(), "Hello\n"),
            call(&[&["run", "--load-session", &file, "--save-session", &file], &model[..], &small].concat()),
        ] {
            assert_eq!((refused.status, refused.stdout.as_str()), (1, ""));
            let reason =
                format!("its {used} tokens are more than a context of {} has room for; give", used - 1);
            assert!(refused.stderr.contains(&reason), "{}", refused.stderr);
        }
        assert!(fs::read(&file).unwrap() == bytes);
    }
}

#[test]
fn a_session_is_saved_whatever_else_goes_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let file = path.to_str().unwrap();
    let greedy = ["run", "--temperature", "0"];
    let whole = quiet_success(&[&greedy[..], &PROMPT].concat());

    // A file stands where prompts are to be kept.
    let occupied = folder.path().join("occupied");
    fs::write(&occupied, "").unwrap();
    let cache = ["--max-tokens", "9", "--save-session", file, "--prefix-cache", occupied.to_str().unwrap()];
    let begun = call(&[&greedy[..], &PROMPT, &cache].concat());
    assert_eq!(begun.status, 0, "{}", begun.stderr);
    assert!(begun.stderr.starts_with("note: the prompt is not kept"), "{}", begun.stderr);
    let rest = quiet_success(&["run", "--load-session", file]);
    assert_eq!(begun.stdout.trim_end().to_owned() + &rest, whole);

    // Nobody reads the answer.
    fs::remove_file(&path).unwrap();
    let mut command = crate::bitnet(&[&greedy[..], &PROMPT, &["--save-session", file]].concat());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    let rest = quiet_success(&["run", "--load-session", file]);
    assert!(rest.len() > 20 && whole.ends_with(&rest), "{rest}");

    // Where it could not be saved, nothing is computed.
    let nowhere = folder.path().join("no/such.session");
    let refused = call(&[&greedy[..], &PROMPT, &["--save-session", nowhere.to_str().unwrap()]].concat());
    assert_eq!((refused.status, refused.stdout.as_str()), (1, ""), "{}", refused.stderr);
    assert_eq!(call(&["run", "--batch", "4", "--load-session", file]).status, 2, "there are no lines");
}

#[test]
fn stop_texts_hold_when_the_answer_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.session");
    let file = path.to_str().unwrap();
    let ask = ["run", "--temperature", "0", "--stop", "the park"];
    let whole = quiet_success(&[&ask[..], &PROMPT].concat());
    assert_eq!(whole, "A big storm came to \n");
    let begun = quiet_success(&[&ask[..], &PROMPT, &["--max-tokens", "2", "--save-session", file]].concat());
    let begun = begun.strip_suffix('\n').unwrap().to_owned();
    let load = ["run", "--load-session", file];
    assert_eq!(begun.clone() + &quiet_success(&load), whole);
    let other = quiet_success(&[&load[..], &["--stop", "came"]].concat());
    assert_eq!(begun + &other, "A big storm \n");
    // An answer that a stop text ended has no rest.
    quiet_success(&[&ask[..], &PROMPT, &["--save-session", file]].concat());
    let over = call(&load);
    assert!(over.status == 1 && over.stderr.contains("had ended"), "{}", over.stderr);
}

#[test]
fn a_kept_prompt_changes_nothing_but_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("prefixes");
    let cached = ["--prefix-cache", dir.to_str().unwrap()];
    let system = "You are a friendly story teller. You like animals, and you tell about their friends.";
    let run =
        |more: &[&str]| quiet_success(&[&["run", "--temperature", "0", "--max-tokens", "20"], more].concat());
    for prompt in ["Tell me a story about a fox", "Tell me a story about a dog", "What is your name?"] {
        let args = ["--system", system, "--prompt", prompt];
        assert_eq!(run(&[&args[..], &cached].concat()), run(&args));
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "the first prompt is most of the others");
}

#[test]
fn a_compressed_model_runs_and_is_described() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (input, output) = (path("synth.gguf"), path("small.bitnet"));
    let sizes = ["--layers", "2", "--heads", "2", "--kv-heads", "1", "--vocab", "300", "--ffn-dim", "256"];
    quiet_success(&[&["synth", "--dim", "256", "--output", &input], &sizes[..]].concat());
    let made = call(&["convert", "--input", &input, "--compress", "--output", &output]);
    assert_eq!((made.status, made.stdout.as_str()), (0, ""), "{}", made.stderr);
    assert!(made.stderr.contains(" bytes became "), "{}", made.stderr);
    assert!(fs::metadata(&output).unwrap().len() < fs::metadata(&input).unwrap().len());
    assert_eq!(continued(&output), continued(&input));
    let object = json(&quiet_success(&["inspect", "--json", &output]));
    let coded = &object["file"]["types"]["coded i2_s"];
    assert!(coded["bytes"].as_u64().unwrap() < coded["unpacked_bytes"].as_u64().unwrap(), "{object}");
    assert_eq!(object["shape"], json(&quiet_success(&["inspect", "--json", &input]))["shape"]);
    let text = quiet_success(&["inspect", &output]);
    assert!(text.contains("coded i2_s") && text.contains(" %)"), "{text}");

    for refused in [&["--type", "i2_s"], &["--embedding", "f16"]] {
        let args = ["convert", "--input", &input, "--compress", "--output", &path("x")];
        assert_eq!(call(&[&args[..], refused].concat()).status, 2, "{refused:?}");
    }
}
