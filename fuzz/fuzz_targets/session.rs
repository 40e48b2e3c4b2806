//! Any bytes are a saved session or an error, and one that opens is loaded by the stories model or refused.

#![no_main]

use std::cell::RefCell;

use bitnet_inference::{Model, SavedSession, Session, SessionOptions};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static SESSION: RefCell<Session> = RefCell::new(
        Model::embedded().and_then(|model| model.session(SessionOptions::default())).expect("it is part of the program"),
    );
}

fuzz_target!(|data: &[u8]| {
    let path = std::env::temp_dir().join(format!("bitnet-fuzz-{}.session", std::process::id()));
    std::fs::write(&path, data).expect("the folder of temporary files can be written");
    if let Ok(saved) = SavedSession::open(&path) {
        SESSION.with_borrow_mut(|session| {
            let _ = session.load(&saved).and_then(|()| session.forward(&[1]).map(drop));
        });
    }
});
