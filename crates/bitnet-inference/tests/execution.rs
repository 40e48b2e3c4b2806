//! What the engine runs on: choices with reasons, a backend that fails, and what a profile costs.

use bitnet_core::Error;
use bitnet_core::execution::{ExecutionBackend, OpenBackend, Strategy, Timings, get_available_backends};
use bitnet_core::file::CacheDir;
use bitnet_inference::{Model, ModelOptions, Operation, SessionOptions};
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
    let start = std::time::Instant::now();
    assert_eq!(bits(session.forward(&[1; 20]).unwrap()), plain);
    let whole = start.elapsed();
    let profile = session.profile().unwrap();
    assert_eq!(profile.generation().map(|(_, totals)| totals.calls).sum::<u64>(), 0);
    let recorded: std::time::Duration = profile.prompts().map(|(_, totals)| totals.time).sum();
    // What is not recorded lies between passes: the rest of a call.
    assert!(recorded <= whole && recorded * 2 > whole, "{recorded:?} of {whole:?}");
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
    let profile = session.profile().unwrap();
    let (_, seen) = profile.generation().find(|(op, _)| *op == Operation::GateUpProjection).unwrap();
    let ms = format!("Performance: {:.3} ms", seen.time.as_secs_f64() * 1e3 / (2 * seen.calls) as f64);
    let lines = said(&chosen);
    assert!(lines.iter().any(|line| line.contains("cpu") && line.contains(&ms)), "{ms} in {lines:?}");
}
