//! Ctrl-C: while an answer is watched, the first one asks for its end. Any other ends the process.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use bitnet_core::file::remove_unfinished_files;

static WATCHED: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// The time in which Ctrl-C is a question. It ends when this is dropped.
pub(crate) struct Watch(());

/// Takes Ctrl-C over from the system. Called once.
pub(crate) fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if !WATCHED.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst) {
            remove_unfinished_files();
            process::exit(1);
        }
    })
    .context("cannot listen for Ctrl-C")
}

impl Watch {
    /// Begins; what was pressed before is forgotten.
    pub(crate) fn start() -> Self {
        ASKED.store(false, Ordering::SeqCst);
        WATCHED.store(true, Ordering::SeqCst);
        Watch(())
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn asked(&self) -> bool {
        ASKED.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.store(false, Ordering::SeqCst);
    }
}
