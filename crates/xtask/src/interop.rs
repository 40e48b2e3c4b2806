//! What the program writes, read by transformers and llama.cpp: their logits beside ours.
//!
//! Not part of `ci`: the Python packages are gigabytes, and llama.cpp is compiled when they are installed.

use crate::ci::Outcome;
use crate::command::{cargo, command, run, succeeds};
use crate::error::Error;

const PACKAGES: [&str; 5] = ["torch", "transformers", "accelerate", "safetensors", "llama-cpp-python"];
/// Where models and the Python environment are kept from one call to the next.
const FOLDER: &str = "target/interop";

/// Runs the comparison with the given Python, or with an environment that is made where there is none.
pub(crate) fn check(python: Option<&str>) -> Result<Outcome, Error> {
    let own_python = format!("{FOLDER}/venv/bin/python");
    let python = match python {
        Some(python) => python,
        None => {
            // An installation that was interrupted is taken up again.
            if !succeeds(command(&own_python, ["-c", "import accelerate, llama_cpp, torch, transformers"])) {
                if !succeeds(command("python3", ["-m", "venv", "--help"])) {
                    return Ok(Outcome::Skipped("python3 with venv is not installed".into()));
                }
                run(command("python3", ["-m", "venv", &format!("{FOLDER}/venv")]))?;
                run(command(&own_python, ["-m", "pip", "install", "--quiet"].iter().chain(&PACKAGES)))?;
            }
            &own_python
        }
    };
    run(cargo(["build", "--package", "bitnet-cli"]))?;
    let script = "crates/xtask/interop/interop.py";
    run(command(python, [script, "target/debug/bitnet", &format!("{FOLDER}/models")]))?;
    Ok(Outcome::Done)
}
