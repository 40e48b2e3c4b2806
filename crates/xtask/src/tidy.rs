//! The rules of this repository that no compiler knows, as a check.
//!
//! Each rule is a function from what it looks at to the places that break it, with a test that it fails on a bad
//! sample. Words that a rule looks for are spelled in two halves here, or this file would break its own rules.

mod crates;
mod shape;
mod source;

use std::fmt;
use std::fs;
use std::io;

use crate::ci::Outcome;
use crate::command::{command, output, packages, root};
use crate::error::Error;
use source::SourceFile;

/// Past this, a file holds a second idea.
const MAX_LINES: usize = 900;
/// One file an ISA: long because the instruction set is, not because of a second idea.
const LONG_FILES: &[&str] = &["crates/bitnet-quant/src/kernels/"];

/// The only places where `unsafe` may stand; an entry that ends in a slash is a folder. Each of them has a reason that
/// safe Rust cannot serve: mapped files, raw memory, vector intrinsics (also to read memory as fast as can be), and threads that share disjoint rows.
const UNSAFE_FILES: &[&str] = &[
    "crates/bitnet-benchmarks/src/scalar_loops.rs",
    "crates/bitnet-core/benches/memory.rs",
    "crates/bitnet-core/benches/tensor.rs",
    "crates/bitnet-core/src/file/mapping.rs",
    "crates/bitnet-core/src/memory.rs",
    "crates/bitnet-core/src/memory/large_block.rs",
    "crates/bitnet-core/src/memory/region.rs",
    "crates/bitnet-core/src/memory/small_block.rs",
    "crates/bitnet-core/src/memory/spin.rs",
    "crates/bitnet-inference/tests/allocation.rs",
    "crates/bitnet-inference/tests/common/float_mode.rs",
    "crates/bitnet-quant/benches/kernels/cached.rs",
    "crates/bitnet-quant/benches/kernels/elementwise.rs",
    "crates/bitnet-quant/src/attention.rs",
    "crates/bitnet-quant/src/fpenv.rs",
    "crates/bitnet-quant/src/head/bounds.rs",
    "crates/bitnet-quant/src/kernels.rs",
    "crates/bitnet-quant/src/kernels/",
    "crates/bitnet-quant/src/limits.rs",
    "crates/bitnet-quant/src/linear.rs",
    "crates/bitnet-quant/src/rows.rs",
    "crates/bitnet-quant/src/threads.rs",
];

/// Folders that exist on one person's machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];
/// Files that people write; what they hold is ours, whereas a vocabulary or a model file may hold any word.
const WRITTEN_EXTENSIONS: &[&str] = &["", "md", "py", "rs", "sh", "toml", "yaml", "yml"];

const UNFINISHED_MARKS: &[&str] = &[
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
    concat!("db", "g!"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// One place that breaks a rule.
#[derive(Debug, PartialEq)]
struct Violation {
    path: String,
    /// Counted from 1; 0 is the file as a whole.
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.rule),
            line => write!(f, "{}:{line}: {}", self.path, self.rule),
        }
    }
}

/// Checks every file that git tracks or would track.
pub(crate) fn run() -> Result<Outcome, Error> {
    let files = written_files()?;
    let mut violations = crates::forbidden_edges(&packages("Cargo.toml")?);
    for file in &files {
        violations.extend(machine_paths(file));
        if file.is_rust() {
            violations.extend(too_long(file));
            violations.extend(unfinished_marks(file));
            violations.extend(unsafe_outside_list(file));
            violations.extend(shape::only_forwards(file));
        }
    }
    violations.extend(shape::types_defined_twice(&files));
    violations.extend(shape::unread_options(&files));

    for violation in &violations {
        eprintln!("  {violation}");
    }
    match violations.len() {
        0 => Ok(Outcome::Done),
        n_violations => Err(Error::Tidy { n_violations }),
    }
}

fn written_files() -> Result<Vec<SourceFile>, Error> {
    let listed = output(command("git", ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
    let mut files = Vec::new();
    for path in String::from_utf8_lossy(&listed).split_terminator('\0') {
        let on_disk = root().join(path);
        let extension = on_disk.extension().unwrap_or_default().to_string_lossy();
        if !WRITTEN_EXTENSIONS.contains(&&*extension) {
            continue;
        }
        match fs::read(&on_disk) {
            // A file without an extension may be data; what is not text has no lines to check.
            Ok(bytes) => files.extend(String::from_utf8(bytes).ok().map(|text| SourceFile::new(path, text))),
            // Deleted, and the deletion not yet committed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::Io { path: on_disk, source }),
        }
    }
    Ok(files)
}

fn too_long(file: &SourceFile) -> Option<Violation> {
    let n_lines = file.text.lines().count();
    (n_lines > MAX_LINES && !listed(LONG_FILES, &file.path))
        .then(|| file.violation(0, format!("{n_lines} lines; more than {MAX_LINES} hide a second idea")))
}

fn machine_paths(file: &SourceFile) -> Vec<Violation> {
    // A folder of that name inside a relative path or an address is somebody else's business.
    let absolute = |line: &str, path: &str| {
        line.match_indices(path).any(|(at, _)| {
            !line[..at].ends_with(|before: char| before.is_alphanumeric() || "_.-~}".contains(before))
        })
    };
    file.lines_with(&file.text, |line| {
        let path = MACHINE_PATHS.iter().find(|path| absolute(line, path))?;
        Some(format!("{path} is a folder of one machine; name things relative to the repository"))
    })
}

fn unfinished_marks(file: &SourceFile) -> Vec<Violation> {
    file.lines_with(&file.text, |line| {
        let mark = UNFINISHED_MARKS.iter().find(|mark| source::has_word(line, mark))?;
        Some(format!("{mark} marks unfinished work"))
    })
}

fn unsafe_outside_list(file: &SourceFile) -> Vec<Violation> {
    if listed(UNSAFE_FILES, &file.path) {
        return Vec::new();
    }
    file.lines_with(&file.code, |line| {
        source::has_word(line, "unsafe").then(|| "unsafe outside the files listed for it in xtask".to_owned())
    })
}

fn listed(entries: &[&str], path: &str) -> bool {
    entries.iter().any(|entry| if entry.ends_with('/') { path.starts_with(entry) } else { path == *entry })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile::new(path, text.to_owned())
    }

    #[test]
    fn long_files_are_named_except_kernels() {
        let lines = "//\n".repeat(MAX_LINES + 1);
        assert!(too_long(&file("crates/bitnet-core/src/tensor.rs", &lines)).is_some());
        assert!(too_long(&file("crates/bitnet-quant/src/kernels/avx2.rs", &lines)).is_none());
        assert!(too_long(&file("crates/bitnet-core/src/tensor.rs", &"//\n".repeat(MAX_LINES))).is_none());
    }

    #[test]
    fn absolute_paths_of_a_machine_are_named_with_their_line() {
        for path in MACHINE_PATHS {
            let found = machine_paths(&file("docs/a.md", &format!("see\n`{path}models`\n")));
            assert_eq!(found.len(), 1, "{path}");
            assert_eq!(found[0].line, 2);
            assert!(machine_paths(&file("docs/a.md", &format!("docs{path}models, $HOME{path}"))).is_empty());
        }
    }

    #[test]
    fn unfinished_marks_are_named_also_in_comments() {
        for mark in UNFINISHED_MARKS {
            assert_eq!(unfinished_marks(&file("a.rs", &format!("// {mark} later\n"))).len(), 1, "{mark}");
        }
        assert!(unfinished_marks(&file("a.rs", "let max_todos = 3;\n")).is_empty());
    }

    #[test]
    fn unsafe_code_is_named_outside_its_list() {
        let text = "// unsafe in a comment\nlet word = \"unsafe\";\nunsafe { read(p) }\n";
        let found = unsafe_outside_list(&file("crates/bitnet-core/src/shape.rs", text));
        assert_eq!(found.iter().map(|violation| violation.line).collect::<Vec<_>>(), [3]);
        for path in ["crates/bitnet-core/src/memory.rs", "crates/bitnet-quant/src/kernels/neon.rs"] {
            assert!(unsafe_outside_list(&file(path, text)).is_empty(), "{path}");
        }
        assert!(unsafe_outside_list(&file("a.rs", "#![deny(unsafe_op_in_unsafe_fn)]")).is_empty());
    }
}
