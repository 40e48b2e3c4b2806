//! What the engine runs on: choices with reasons, a backend that fails, and what a profile costs.

use std::time::{Duration, Instant};

use bitnet_core::Error;
use bitnet_core::execution::{ExecutionBackend, OpenBackend, Strategy, Timings, get_available_backends};
use bitnet_core::file::CacheDir;
use bitnet_inference::{Model, ModelOptions, Operation, Session, SessionOptions};
use bitnet_quant::kernels::Isa;

use crate::common::bits;

fn logits(model: &Model) -> Vec<u32> {
    bits(model.session(SessionOptions::default()).unwrap().forward(&[1, 5, 9]).unwrap())
}

#[test]
fn a_backend_that_fails_to_open_is_replaced_once_and_visibly() {
    let open: OpenBackend = |backend| match backend {
        ExecutionBackend::Simd => Err(Error::Backend { backend: "simd", reason: "injected".into() }),
        backend => backend.kernels(),
    };
    let whole = Model::embedded().unwrap();
    let fallen =
        Model::embedded_with(&ModelOptions { open_backend: Some(open), ..Default::default() }).unwrap();
    assert_eq!(fallen.kernels_name(), "scalar");
    assert_eq!(logits(&fallen), logits(&whole), "no backend changes a bit");
    let said = |model: &Model| model.notices().iter().filter(|line| line.contains("passed over")).count();
    let simd = usize::from(ExecutionBackend::Simd.check().is_ok());
    assert_eq!((said(&whole), said(&fallen)), (0, simd), "{:?}", fallen.notices());
}

#[test]
fn a_backend_that_was_asked_for_is_not_replaced() {
    let options = |isa, strategy| ModelOptions { isa, strategy, ..Default::default() };
    let scalar = Model::embedded_with(&options(Some(Isa::Scalar), Strategy::Priority)).unwrap();
    assert_eq!(scalar.kernels_name(), "scalar");
    let other = if cfg!(target_arch = "x86_64") { Isa::Neon } else { Isa::Avx2 };
    let error = Model::embedded_with(&options(Some(other), Strategy::Priority)).unwrap_err().to_string();
    assert!(error.contains("it can run scalar"), "{error}");
    let custom = Strategy::Custom(std::sync::Arc::new(|_, _| Some(ExecutionBackend::Cpu)));
    let chosen = Model::embedded_with(&options(None, custom)).unwrap();
    assert_eq!(chosen.kernels_name(), "scalar");
    let lines: Vec<String> = chosen.choices().iter().map(ToString::to_string).collect();
    assert!(lines.contains(&"backend: cpu (scalar: the caller's choice)".into()), "{lines:?}");
}

#[test]
fn a_profile_accounts_for_the_time_and_changes_nothing() {
    let model = Model::embedded().unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    assert!(session.profile().is_none());
    let plain = bits(session.forward(&[1; 20]).unwrap());
    session.truncate(0);
    session.start_profile();
    let start = Instant::now();
    assert_eq!(bits(session.forward(&[1; 20]).unwrap()), plain);
    let whole = start.elapsed();
    let profile = session.profile().unwrap();
    assert_eq!(profile.generation().map(|(_, totals)| totals.calls).sum::<u64>(), 0);
    let recorded: Duration = profile.prompts().map(|(_, totals)| totals.time).sum();
    // What is not recorded lies between passes: the rest of a call.
    assert!(recorded <= whole && recorded * 2 > whole, "{recorded:?} of {whole:?}");
}

/// Of one token's feed-forward network, as far as it was seen.
fn least_of_one(session: &Session) -> Option<Duration> {
    let mut totals = session.profile().unwrap().generation();
    totals.find(|(operation, _)| *operation == Operation::GateUpProjection).unwrap().1.least_of_one
}

/// Drafts are checked in passes of several tokens, which take longer than one of a single token.
#[test]
fn passes_of_several_tokens_teach_nothing_about_one() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheDir::new(folder.path(), u64::MAX);
    let model = Model::embedded().unwrap();
    let mut session = model.session(SessionOptions::default()).unwrap();
    session.start_profile();
    session.forward(&[1, 2, 3]).unwrap();
    session.record_timings(&mut Timings::read(Some(&cache)));
    assert_eq!(least_of_one(&session), None);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was learned");
}

/// Sessions with and without a profile, a pass of each in turns, so that other work meets both alike.
/// `cargo test -p bitnet-inference --release --test main -- --ignored cost_of_a_profile --nocapture`
#[test]
#[ignore = "other programs on the machine would decide it"]
fn the_cost_of_a_profile_is_less_than_a_hundredth() {
    const PASSES: usize = 6000;
    let model = Model::embedded().unwrap();
    let session = || model.session(SessionOptions::default()).unwrap();
    let mut sessions = [session(), session()];
    sessions[1].start_profile();
    let mut seconds = [Vec::new(), Vec::new()];
    for i in 0..PASSES {
        for (session, seconds) in sessions.iter_mut().zip(&mut seconds) {
            if i % 100 == 0 {
                session.truncate(0);
            }
            let start = Instant::now();
            session.forward(&[1]).unwrap();
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    // A recorded pass is one of several: the mean counts, but without passes that lost their core to somebody else.
    let [without, with] = seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        let middle = &seconds[..PASSES * 9 / 10];
        middle.iter().sum::<f64>() / middle.len() as f64
    });
    let (marks, cost) = sessions[1].profile().unwrap().marks();
    let (recorded, passes) = sessions[1].profile().unwrap().passes();
    println!("{:.2} µs a pass without, {:.2} with: ratio {:.4}", without * 1e6, with * 1e6, with / without);
    println!("{recorded} of {passes} passes recorded, {marks} marks of {cost:?}");
    assert!(with / without < 1.01);
}

#[test]
fn what_a_profile_saw_decides_later_choices() {
    let folder = tempfile::tempdir().unwrap();
    let cache = CacheDir::new(folder.path(), u64::MAX);
    let options = |isa, strategy| ModelOptions {
        isa,
        strategy,
        n_threads: Some(1),
        cache: Some(cache.clone()),
        ..Default::default()
    };
    let scalar = Model::embedded_with(&options(Some(Isa::Scalar), Strategy::Priority)).unwrap();
    let mut session = scalar.session(SessionOptions::default()).unwrap();
    session.start_profile();
    session.forward(&[1]).unwrap();
    session.record_timings(&mut Timings::read(Some(&cache)));
    let chosen = Model::embedded_with(&options(None, Strategy::Performance)).unwrap();
    let said = |model: &Model| -> Vec<String> { model.choices().iter().map(ToString::to_string).collect() };
    let total = |model: &Model| said(model).iter().filter(|line| line.contains("Performance: ")).count();
    assert_eq!(total(&chosen), get_available_backends().len(), "{:?}", said(&chosen));
    // The time that was seen is the one that is said.
    let least = least_of_one(&session).unwrap();
    let ms = format!("Performance: {:.3} ms", least.as_secs_f64() * 1e3 / 2.0);
    let lines = said(&chosen);
    assert!(lines.iter().any(|line| line.contains("cpu") && line.contains(&ms)), "{ms} in {lines:?}");
}
