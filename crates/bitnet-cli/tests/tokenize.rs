//! `bitnet tokenize`

use crate::{call, quiet_success, stories};

fn ids(value: &serde_json::Value) -> String {
    value.as_array().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn ids_equal_the_reference_and_come_back_as_text() {
    let cases = stories();
    for case in cases["tokenizer"].as_array().unwrap() {
        let (text, ids) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
        assert_eq!(quiet_success(&["tokenize", text]), format!("{ids}\n"), "{text:?}");
        let decoded = case["decoded"].as_str().unwrap();
        assert_eq!(quiet_success(&["tokenize", "--decode", &ids]), format!("{decoded}\n"));
    }
}

#[test]
fn special_tokens_are_added_on_request() {
    let golden = &stories()["prompts"][0];
    assert_eq!(
        quiet_success(&["tokenize", "--special", "Once upon a time"]),
        format!("{}\n", ids(&golden["ids"]))
    );
}

#[test]
fn what_is_no_id_is_refused() {
    let output = call(&["tokenize", "--decode", "5 six"]);
    assert_eq!((output.status, output.stdout.as_str()), (1, ""));
    assert!(output.stderr.starts_with("bitnet: error: `six` is no token id"), "{}", output.stderr);
    assert_eq!(call(&["tokenize", "--decode", "999999"]).status, 1);
}
