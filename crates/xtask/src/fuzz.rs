//! libFuzzer on every target of the `fuzz` workspace, with nothing installed but a stable Rust and a C++ compiler.
//!
//! `cargo fuzz` would ask for a nightly; what it adds is a set of compiler flags, which are given here. The flags are
//! unstable, hence `RUSTC_BOOTSTRAP`, and hence the workspace of its own: nothing else is built that way.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::ci::Outcome;
use crate::command::{cargo, command, output, packages, root, run, succeeds};
use crate::error::Error;

pub(crate) const DEFAULT_DURATION: Duration = Duration::from_secs(60);

const MANIFEST: &str = "fuzz/Cargo.toml";
const COVERAGE_FLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
    -Ccodegen-units=1 -Cdebug-assertions --cfg fuzzing";
/// A hostile file is small, so a reader that needs this much memory or time for it is wrong. Leaks are not looked for:
/// that needs ptrace, which containers forbid.
const LIMITS: [&str; 4] = ["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10", "-detect_leaks=0"];

/// Fuzzes the named targets, or all that the manifest lists, each for `duration`, starting from `fuzz/seeds/TARGET`.
pub(crate) fn run_targets(duration: Duration, names: &[String]) -> Result<Outcome, Error> {
    let targets = selected(targets()?, names)?;
    if !succeeds(command("c++", ["--version"])) {
        return Ok(Outcome::Skipped("libFuzzer needs a C++ compiler (apt-get install g++)".into()));
    }
    let host = rustc_prints(&["--print", "host-tuple"])?;
    build(&targets, &host)?;
    for target in &targets {
        let binary = root().join("fuzz/target").join(&host).join("release").join(target);
        fuzz(target, &binary, duration)?;
    }
    Ok(Outcome::Done)
}

fn targets() -> Result<Vec<String>, Error> {
    let packages = packages(MANIFEST)?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let binaries = targets.filter(|target| target["kind"][0] == "bin");
    Ok(binaries.filter_map(|target| target["name"].as_str()).map(str::to_owned).collect())
}

fn selected(known: Vec<String>, names: &[String]) -> Result<Vec<String>, Error> {
    if names.is_empty() {
        return Ok(known);
    }
    match names.iter().find(|name| !known.contains(name)) {
        Some(name) => Err(Error::NoFuzzTarget { name: name.clone(), known }),
        None => Ok(names.to_vec()),
    }
}

/// Naming the host as the target keeps the flags away from build scripts and procedural macros.
fn build(targets: &[String], host: &str) -> Result<(), Error> {
    let mut build = cargo(["build", "--manifest-path", MANIFEST, "--release", "--target", host]);
    build.args(["--target-dir", "fuzz/target"]);
    build.args(targets.iter().flat_map(|target| ["--bin", target]));
    let mut flags = COVERAGE_FLAGS.to_owned();
    if has_address_sanitizer(Path::new(&rustc_prints(&["--print", "target-libdir"])?)) {
        flags.push_str(" -Zsanitizer=address");
    } else {
        eprintln!("  without AddressSanitizer: this compiler does not bring its run-time library");
    }
    build.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", flags).env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(build)
}

fn fuzz(target: &str, binary: &Path, duration: Duration) -> Result<(), Error> {
    let artifacts = root().join("fuzz/artifacts").join(target);
    create_dir(&artifacts)?;
    let started = SystemTime::now();
    let corpus = TemporaryCorpus::create(target)?;
    let seeds = root().join("fuzz/seeds").join(target);

    // libFuzzer writes what it finds into its first folder and only reads the others, so the seeds stay as committed.
    let mut fuzzer = command(&binary.to_string_lossy(), LIMITS);
    fuzzer.arg(format!("-max_total_time={}", duration.as_secs()));
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzzer.arg("-print_final_stats=1").arg(&corpus.path);
    if seeds.is_dir() {
        fuzzer.arg(&seeds);
    }
    run(fuzzer).map_err(|error| match written_since(started, &artifacts) {
        Ok(artifacts) if !artifacts.is_empty() => Error::Crash { target: target.to_owned(), artifacts },
        _ => error,
    })
}

/// By time and not by name: an input that was found before is written again under the same name.
fn written_since(started: SystemTime, dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut written = files(dir)?;
    written.retain(|file| file.metadata().and_then(|data| data.modified()).is_ok_and(|time| time >= started));
    Ok(written)
}

fn rustc_prints(args: &[&str]) -> Result<String, Error> {
    let printed = output(command("rustc", args))?;
    Ok(String::from_utf8_lossy(&printed).trim().to_owned())
}

fn has_address_sanitizer(libdir: &Path) -> bool {
    files(libdir).is_ok_and(|files| files.iter().any(|file| file.to_string_lossy().ends_with(".asan.a")))
}

fn files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io { path: dir.to_owned(), source };
    let entries = fs::read_dir(dir).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}

fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::Io { path: path.to_owned(), source })
}

/// Where one run of a target keeps the inputs that reached new code; removed with the run.
struct TemporaryCorpus {
    path: PathBuf,
}

impl TemporaryCorpus {
    fn create(target: &str) -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("bitnet-fuzz-{target}-{}", std::process::id()));
        create_dir(&path)?;
        Ok(TemporaryCorpus { path })
    }
}

impl Drop for TemporaryCorpus {
    fn drop(&mut self) {
        // A folder left in the temporary directory does no harm, so a failure here is no failure of the run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_targets_and_unknown_ones_are_refused() {
        let known = || vec!["gguf".to_owned(), "config".to_owned()];
        assert_eq!(selected(known(), &[]).unwrap(), known());
        assert_eq!(selected(known(), &["config".into()]).unwrap(), ["config"]);
        let error = selected(known(), &["gguf".into(), "pickle".into()]).unwrap_err();
        assert!(
            error.to_string().contains("\"pickle\"") && error.to_string().contains("gguf, config"),
            "{error}"
        );
    }

    #[test]
    fn an_artifact_written_again_is_found_and_an_old_one_is_not() {
        let folder = TemporaryCorpus::create("artifacts-of-a-test").unwrap();
        let (old, again) = (folder.path.join("crash-old"), folder.path.join("crash-again"));
        let started = SystemTime::now();
        for (path, written) in
            [(&old, started - Duration::from_secs(9)), (&again, started + Duration::from_secs(9))]
        {
            fs::File::create(path).unwrap().set_modified(written).unwrap();
        }
        assert_eq!(written_since(started, &folder.path).unwrap(), [again]);
    }

    #[test]
    fn the_temporary_corpus_is_removed() {
        let corpus = TemporaryCorpus::create("of-a-test").unwrap();
        let path = corpus.path.clone();
        assert!(path.is_dir());
        drop(corpus);
        assert!(!path.exists());
    }
}
