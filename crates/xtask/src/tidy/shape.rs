//! Rules about the shape of the code: types with one home, files with something in them, options that somebody reads.

use std::collections::BTreeMap;

use super::Violation;
use super::source::{SourceFile, has_word};

/// Names that every crate may define for itself.
const SHARED_TYPE_NAMES: &[&str] = &["Error", "Result"];
/// How structs of options end.
const OPTION_SUFFIXES: &[&str] = &["Config", "Options"];
/// The front doors of crates and test binaries, which name what is inside.
const DOORS: &[&str] = &["lib.rs", "main.rs", "mod.rs"];

/// Types that can be named outside of their file, and that another file of the workspace defines, too.
pub(super) fn types_defined_twice(files: &[SourceFile]) -> Vec<Violation> {
    let mut first_homes = BTreeMap::new();
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| is_source(file)) {
        for (line, name) in file.visible_types() {
            if SHARED_TYPE_NAMES.contains(&name) {
                continue;
            }
            let home = first_homes.entry(name).or_insert_with(|| format!("{}:{line}", file.path));
            if *home != format!("{}:{line}", file.path) {
                violations.push(file.violation(line, format!("type {name} is already defined at {home}")));
            }
        }
    }
    violations
}

/// Files that hold nothing of their own: only what other files define, under another name.
pub(super) fn only_forwards(file: &SourceFile) -> Option<Violation> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    if !is_source(file) || DOORS.contains(&name) {
        return None;
    }
    let mut items = statements(&file.code).peekable();
    items.peek()?;
    items.all(forwards).then(|| file.violation(0, "only forwards what other files define".to_owned()))
}

/// Pieces that end in a semicolon or a closing brace outside of any other, without attributes.
fn statements(code: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    let ends = code.char_indices().filter_map(move |(at, c)| {
        depth += i32::from("{[(".contains(c)) - i32::from("}])".contains(c));
        (depth == 0 && (c == ';' || c == '}')).then_some(at + c.len_utf8())
    });
    let mut start = 0;
    let pieces = ends.map(move |end| {
        let piece = &code[start..end];
        start = end;
        piece.trim()
    });
    // The end of the braces of an import is not the end of the import.
    pieces.filter(|piece| *piece != ";")
}

fn forwards(statement: &str) -> bool {
    let mut rest = statement;
    while let Some(attribute) = rest.strip_prefix('#') {
        rest = attribute.split_once(']').map_or("", |(_, rest)| rest.trim_start());
    }
    let rest = rest.strip_prefix("pub").map_or(rest, |rest| match rest.strip_prefix('(') {
        Some(scope) => scope.split_once(')').map_or("", |(_, rest)| rest),
        None => rest,
    });
    let rest = rest.trim_start();
    rest.starts_with("use ") || (rest.starts_with("mod ") && !rest.contains('{'))
}

/// Fields of structs of options that no code outside of tests reads: a user who sets one is fooled.
pub(super) fn unread_options(files: &[SourceFile]) -> Vec<Violation> {
    let sources: Vec<&SourceFile> = files.iter().filter(|file| is_source(file)).collect();
    let code: Vec<&str> = sources.iter().map(|file| without_tests(&file.code)).collect();
    let is_read = |name: &str, field: &str| {
        let access = format!(".{field}");
        let pattern = format!("let {name} {{");
        code.iter().flat_map(|code| code.lines()).any(|line| {
            let read = line.match_indices(&access).any(|(at, _)| {
                let after = &line[at + access.len()..];
                // A method of that name, or what an assignment writes, is no field that is read.
                !after.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '(')
                    && after.trim_start().strip_prefix('=').is_none_or(|rest| rest.starts_with('='))
            });
            read || (line.contains(&pattern) && has_word(line, field))
        })
    };
    let mut violations = Vec::new();
    for (file, code) in sources.iter().zip(&code) {
        for (line, name, field) in option_fields(code) {
            if !is_read(name, field) {
                violations.push(file.violation(line, format!("nothing reads the option {name}::{field}")));
            }
        }
    }
    violations
}

/// (line, struct, field) of every structure of options with named fields.
fn option_fields(code: &str) -> Vec<(usize, &str, &str)> {
    let mut fields = Vec::new();
    let mut inside: Option<&str> = None;
    for (idx, line) in code.lines().enumerate() {
        let text = line.trim();
        match inside {
            Some(_) if line.starts_with('}') => inside = None,
            Some(name) => {
                let declared = text.split_once(':').map(|(left, _)| left.rsplit(' ').next().unwrap_or(left));
                let field = declared.filter(|field| {
                    !field.is_empty() && field.chars().all(|c| c.is_alphanumeric() || c == '_')
                });
                fields.extend(field.map(|field| (idx + 1, name, field)));
            }
            None => {
                let name = text.split_once("struct ").map(|(_, rest)| rest);
                let end = |name: &str| name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
                let name = name.map(|name| &name[..end(name)]);
                inside = name.filter(|name| {
                    text.ends_with('{') && OPTION_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
                });
            }
        }
    }
    fields
}

/// What stands before the tests of a file.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or(code, |at| &code[..at])
}

fn is_source(file: &SourceFile) -> bool {
    file.is_rust() && file.path.contains("/src/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile::new(path, text.to_owned())
    }

    #[test]
    fn a_type_has_one_home() {
        let files = [
            file("crates/a/src/one.rs", "pub struct Shape;\npub enum Error {}\nstruct Local;\n"),
            file(
                "crates/b/src/two.rs",
                "pub enum Error {}\n    pub(crate) trait Shape {}\n// pub struct Shape;\nstruct Local;\n",
            ),
            file("crates/b/tests/main.rs", "pub struct Shape;\n"),
        ];
        let found = types_defined_twice(&files);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            found[0].to_string(),
            "crates/b/src/two.rs:2: type Shape is already defined at crates/a/src/one.rs:1"
        );
    }

    #[test]
    fn a_file_holds_something_of_its_own() {
        let forwarding = "//! Why.\n\nmod a;\n#[cfg(unix)]\npub(crate) mod b;\n\nuse x::{\n    y,\n};\npub use a::{B, C};\n";
        assert!(only_forwards(&file("crates/a/src/one.rs", forwarding)).is_some());
        for (path, text) in [
            ("crates/a/src/lib.rs", forwarding),
            ("crates/a/tests/one.rs", forwarding),
            ("crates/a/src/one.rs", "pub use a::B;\nfn f() { g(); }\n"),
            ("crates/a/src/one.rs", "pub use a::B;\nconst C: usize = 1;\n"),
            ("crates/a/src/one.rs", "mod tests { fn f() {} }\n"),
            ("crates/a/src/one.rs", "//! Nothing.\n"),
        ] {
            assert!(only_forwards(&file(path, text)).is_none(), "{path}: {text}");
        }
    }

    #[test]
    fn every_option_is_read_somewhere() {
        let definition = "pub struct RunOptions {\n    /// a.b\n    pub a: usize,\n    #[serde(default)]\n    b: Option<u8>,\n    pub(crate) c: bool,\n    d: u8,\n}\nstruct Other { e: u8 }\n";
        let unread = |code: &str| -> Vec<String> {
            let files = [file("crates/a/src/o.rs", definition), file("crates/b/src/u.rs", code)];
            unread_options(&files)
                .iter()
                .map(|v| v.rule.rsplit("::").next().unwrap_or("").to_owned())
                .collect()
        };
        assert_eq!(unread(""), ["a", "b", "c", "d"]);
        assert_eq!(unread("f(o.a); let RunOptions { b, .. } = o; if x.c == y {}\nlet z = o.d;\n"), [""; 0]);
        // Writing, calling, mentioning and testing are not reading.
        let code = "o.a = 1; o.b(); // o.c\nlet ab = o.dd;\n#[cfg(test)]\nmod tests { f(o.d); }\n";
        assert_eq!(unread(code), ["a", "b", "c", "d"]);
    }
}
