//! A file as the rules read it: its lines, and for Rust its code without comments and literals.

use super::Violation;

pub(super) struct SourceFile {
    /// Relative to the repository, with forward slashes.
    pub(super) path: String,
    pub(super) text: String,
    /// The text with comments, strings and characters blanked out, line for line; for other languages the text.
    pub(super) code: String,
}

impl SourceFile {
    pub(super) fn new(path: &str, text: String) -> Self {
        let code = if path.ends_with(".rs") { without_comments_and_literals(&text) } else { text.clone() };
        SourceFile { path: path.to_owned(), text, code }
    }

    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    pub(super) fn violation(&self, line: usize, rule: String) -> Violation {
        Violation { path: self.path.clone(), line, rule }
    }

    /// One violation for each line of `text` about which `rule` has something to say.
    pub(super) fn lines_with(&self, text: &str, rule: impl Fn(&str) -> Option<String>) -> Vec<Violation> {
        let lines = text.lines().enumerate();
        lines.filter_map(|(idx, line)| Some(self.violation(idx + 1, rule(line)?))).collect()
    }

    /// The structs, enums, traits and aliases that other files can name, with their lines.
    pub(super) fn visible_types(&self) -> Vec<(usize, &str)> {
        let lines = self.code.lines().enumerate();
        lines.filter_map(|(idx, line)| Some((idx + 1, visible_type(line)?))).collect()
    }
}

fn visible_type(line: &str) -> Option<&str> {
    let item = line.trim_start().strip_prefix("pub")?;
    let item = item.strip_prefix('(').map_or(Some(item), |scope| Some(scope.split_once(')')?.1))?;
    let item = item.strip_prefix(' ')?;
    let item = item.strip_prefix("unsafe ").unwrap_or(item);
    let name = ["struct ", "enum ", "trait ", "type "].iter().find_map(|kind| item.strip_prefix(kind))?;
    let end = name.find(|c: char| !is_word(c)).unwrap_or(name.len());
    Some(&name[..end])
}

/// True where `word` stands in the line with no letter, digit or underscore on either side.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn without_comments_and_literals(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let hidden = hidden_len(rest);
        if hidden == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.extend(rest[..hidden].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[hidden..];
        }
    }
    code
}

/// The length of the comment or literal that `rest` starts with; 0 when it starts with code.
fn hidden_len(rest: &str) -> usize {
    match rest.as_bytes() {
        [b'/', b'/', ..] => rest.find('\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_len(rest),
        [b'"', ..] => quoted_len(rest, '"'),
        [b'r', b'"' | b'#', ..] => raw_string_len(rest),
        // Anything else after an apostrophe is a lifetime.
        [b'\'', b'\\', ..] => quoted_len(rest, '\''),
        [b'\'', ..] if rest.chars().nth(2) == Some('\'') => rest.chars().take(3).map(char::len_utf8).sum(),
        _ => 0,
    }
}

fn block_comment_len(rest: &str) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 {
        let Some(next) = rest[at..].find(['/', '*']).map(|next| at + next) else {
            return rest.len();
        };
        let (step, change) = match rest.get(next..next + 2) {
            Some("/*") => (2, 1),
            Some("*/") => (2, -1),
            _ => (1, 0),
        };
        at = next + step;
        depth += change;
    }
    at
}

fn quoted_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    rest.len()
}

fn raw_string_len(rest: &str) -> usize {
    let n_hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
    let opening = n_hashes + 2;
    // A raw identifier has a hash and no quotation mark.
    if !rest[n_hashes + 1..].starts_with('"') {
        return 0;
    }
    let closing = format!("\"{}", "#".repeat(n_hashes));
    rest[opening..].find(&closing).map_or(rest.len(), |at| opening + at + closing.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_everything_keeps_its_place() {
        for (source, words) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ */ d", "a d"),
            (r#"f("\"b\\") g"#, "f( ) g"),
            (r###"f(r#"a"b"#) g"###, "f( ) g"),
            (r#"r#type + r"x" y"#, "r#type + y"),
            (r"b'\'' 'a' x", "b x"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("'é' \"ü\n\" x", "x"),
            ("a \"open", "a"),
            ("a /* open", "a"),
        ] {
            let code = without_comments_and_literals(source);
            assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), words, "{source}");
            let line_lens = |text: &str| text.lines().map(|line| line.chars().count()).collect::<Vec<_>>();
            assert_eq!(line_lens(&code), line_lens(source), "{source}");
        }
    }

    #[test]
    fn visible_types_are_found_by_their_names() {
        let text = "pub struct Tensor<T>(T);\npub(crate) struct Inner;\nstruct Hidden;\npub unsafe trait View {}\npub fn f() {}\n";
        let file = SourceFile::new("a.rs", text.to_owned());
        assert_eq!(file.visible_types(), [(1, "Tensor"), (2, "Inner"), (4, "View")]);
    }
}
