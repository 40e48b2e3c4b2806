//! The engine and its pool: what a session takes, what happens when memory is short, sessions that are compressed while
//! nobody asks them, and weights that processes share.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bitnet_core::Error as CoreError;
use bitnet_core::memory::{
    CleanupConfig, CleanupStrategy, HybridMemoryPool, MemoryMetrics, MemoryPoolConfig, MemoryPressureLevel,
    TrackingConfig, TrackingLevel,
};
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_inference::config::ModelConfig;
use bitnet_inference::synth::{self, SynthOptions, SynthShape};
use bitnet_inference::{
    Error, GenerateOptions, HeadMode, HeadOptions, Model, ModelOptions, Preparation, Session, SessionOptions,
};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::layout::Layout;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::{KV_DTYPES, bits, session};

/// Tokens that fill more than one chunk of the cache.
fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * 37 % 200 + 3).collect()
}

fn embedded_in(config: MemoryPoolConfig) -> Model {
    let pool = HybridMemoryPool::with_config(config).unwrap();
    Model::embedded_with(&ModelOptions { pool: Some(pool), ..Default::default() }).unwrap()
}

#[test]
fn everything_a_session_has_is_from_the_pool_and_goes_back() {
    let model = embedded_in(MemoryPoolConfig::default());
    let before = model.pool().get_metrics();
    for kv in KV_DTYPES {
        let session = session(&model, kv, 16);
        let with_session = model.pool().get_metrics();
        let max_seq_len = session.max_seq_len();
        let kv_bytes = Session::kv_cache_bytes(model.config(), max_seq_len, kv);
        let activations = Session::activation_bytes(model.config(), 16, max_seq_len).unwrap();
        assert_eq!(session.kv_pool_bytes(), kv_bytes);
        assert_eq!(with_session.total_allocated - before.total_allocated, kv_bytes + activations);
        drop(session);
        assert_eq!(model.pool().get_metrics().total_allocated, before.total_allocated);
    }
}

#[test]
fn a_compressed_session_goes_on_with_the_same_logits() {
    let model = embedded_in(MemoryPoolConfig::default());
    for kv in KV_DTYPES {
        for n in [1, 100, 256, 300] {
            let (mut plain, mut packed) = (session(&model, kv, 64), session(&model, kv, 64));
            plain.extend(&prompt(n)).unwrap();
            packed.extend(&prompt(n)).unwrap();
            let full = packed.kv_pool_bytes();
            let used = Session::kv_bytes_per_token(model.config(), n, kv);
            let given_back = packed.compress().unwrap();
            let left = packed.kv_pool_bytes();
            assert_eq!(full - left, given_back);
            println!(
                "{kv}, {n} tokens: {full} bytes, {used} in use, {left} compressed: {:.2} of them",
                used as f64 / left as f64
            );
            // A plane that gains nothing is kept as it is, with a byte in front.
            assert!(left <= used + 16, "{kv}, {n} tokens: {left} bytes for {used}");
            assert!(n < 100 || left < used, "{kv}, {n} tokens: {left} bytes for {used}");
            // Compressed twice, cut shorter while it is compressed, and unpacked.
            assert_eq!(packed.compress().unwrap(), 0);
            for session in [&mut plain, &mut packed] {
                session.truncate(n - n / 3);
            }
            assert_eq!(
                bits(plain.forward(&[7]).unwrap()),
                bits(packed.forward(&[7]).unwrap()),
                "{kv}, {n} tokens"
            );
            assert_eq!(packed.kv_pool_bytes(), full);
            packed.compress().unwrap();
            assert_eq!(bits(plain.forward(&prompt(9)).unwrap()), bits(packed.forward(&prompt(9)).unwrap()));
        }
    }
}

/// Two sessions that take turns: all pieces of text.
fn take_turns(sessions: &mut [Session; 2]) -> Vec<String> {
    let options = GenerateOptions { max_tokens: 12, ..Default::default() };
    let mut prompts = [prompt(20), prompt(30)];
    let mut pieces = Vec::new();
    for _ in 0..3 {
        for (session, prompt) in sessions.iter_mut().zip(&mut prompts) {
            pieces.push(
                session.generate_from(prompt, &options).unwrap().collect::<Result<String, _>>().unwrap(),
            );
            *prompt = session.tokens().to_vec();
            prompt.push(5);
        }
    }
    pieces
}

#[test]
fn under_a_small_limit_pressure_is_told_and_nothing_is_lost() {
    let unlimited = embedded_in(MemoryPoolConfig::default());
    let open = |model: &Model| session(model, KV_DTYPES[0], 16);
    let model_bytes = unlimited.pool().get_metrics();
    let first = open(&unlimited);
    let one_session = unlimited.pool().get_metrics();
    let want = take_turns(&mut [first, open(&unlimited)]);

    let kv = Session::kv_cache_bytes(unlimited.config(), open(&unlimited).max_seq_len(), KV_DTYPES[0]);
    let small = |metrics: &MemoryMetrics| metrics.total_allocated - metrics.large_allocated;
    let per_session = one_session.large_allocated - model_bytes.large_allocated;
    assert!(per_session >= kv, "the keys and values are large blocks");
    let config = MemoryPoolConfig {
        max_small_pool_size: 3 * small(&one_session) + (1 << 20),
        // Half a cache less than two sessions need.
        max_large_pool_size: one_session.large_allocated + per_session - kv / 2,
        enable_advanced_tracking: true,
        tracking_config: Some(TrackingConfig {
            level: TrackingLevel::Basic,
            pressure_threshold_ratio: 0.5,
            ..Default::default()
        }),
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig { pressure_cleanup_threshold: 1.0, ..Default::default() }),
        ..Default::default()
    };
    let without_cleanup = embedded_in(MemoryPoolConfig { enable_automatic_cleanup: false, ..config.clone() });
    let _first = open(&without_cleanup);
    let precision = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, KV_DTYPES[0]);
    let refused =
        without_cleanup.session(SessionOptions { chunk: Some(16), precision, ..Default::default() });
    assert!(
        matches!(refused, Err(Error::Core(CoreError::OutOfMemory { .. }))),
        "two sessions do not fit side by side"
    );

    let model = embedded_in(config);
    let n_calls = Arc::new(AtomicUsize::new(0));
    let counter = n_calls.clone();
    assert!(model.pool().register_pressure_callback(Box::new(move |level| {
        counter.fetch_add(usize::from(level >= MemoryPressureLevel::Medium), Ordering::Relaxed);
    })));
    let mut sessions = [open(&model), open(&model)];
    let before = n_calls.load(Ordering::Relaxed);
    assert_eq!(take_turns(&mut sessions), want);
    assert!(n_calls.load(Ordering::Relaxed) > before, "while text is generated");
    let [a, b] = sessions.map(|session| session.kv_pool_bytes());
    assert!(a < kv && b == kv, "the one that is idle is compressed: {a} {b} of {kv}");
}

#[test]
fn many_sessions_take_turns_in_the_room_of_two_and_the_longest_idle_give_way() {
    const N: usize = 6;
    let unlimited = embedded_in(MemoryPoolConfig::default());
    let open = |model: &Model| session(model, KV_DTYPES[0], 16);
    let model_bytes = unlimited.pool().get_metrics().large_allocated;
    let mut want = (0..N).map(|_| open(&unlimited)).collect::<Vec<_>>();
    let per_session = (unlimited.pool().get_metrics().large_allocated - model_bytes) / N;
    let kv = Session::kv_cache_bytes(unlimited.config(), want[0].max_seq_len(), KV_DTYPES[0]);
    let model = embedded_in(MemoryPoolConfig {
        // All have their activations, and two of them their keys and values.
        max_large_pool_size: model_bytes + N * (per_session - kv) + 2 * kv,
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig { pressure_cleanup_threshold: 1.0, ..Default::default() }),
        ..Default::default()
    });
    let mut sessions = (0..N).map(|_| open(&model)).collect::<Vec<_>>();
    for round in 0..3 {
        for (i, (session, want)) in sessions.iter_mut().zip(&mut want).enumerate() {
            let tokens = prompt(5 + i + round);
            assert_eq!(bits(session.forward(&tokens).unwrap()), bits(want.forward(&tokens).unwrap()), "{i}");
        }
        let whole: Vec<bool> = sessions.iter().map(|session| session.kv_pool_bytes() == kv).collect();
        assert_eq!(whole, [false, false, false, false, true, true], "those who were asked last");
    }
}

#[test]
fn pressure_leaves_a_session_alone_that_was_used_within_a_second() {
    let model = embedded_in(MemoryPoolConfig::default());
    let mut session = session(&model, KV_DTYPES[0], 16);
    session.extend(&prompt(20)).unwrap();
    let used = Instant::now();
    let reclaimed = model.pool().cleanup(CleanupStrategy::Pressure).bytes_reclaimed;
    assert!(reclaimed == 0 || used.elapsed() > Duration::from_secs(1), "{reclaimed}");
    std::thread::sleep(Duration::from_millis(1050));
    let reclaimed = model.pool().cleanup(CleanupStrategy::Pressure).bytes_reclaimed;
    assert!(reclaimed > session.kv_pool_bytes(), "{reclaimed}");
}

#[test]
fn an_idle_session_is_compressed_by_itself() {
    let model = embedded_in(MemoryPoolConfig {
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig {
            idle_cleanup_interval: Duration::from_millis(50),
            ..Default::default()
        }),
        ..Default::default()
    });
    let mut idle = session(&model, KV_DTYPES[1], 16);
    let mut other = session(&embedded_in(MemoryPoolConfig::default()), KV_DTYPES[1], 16);
    let full = Session::kv_cache_bytes(model.config(), idle.max_seq_len(), KV_DTYPES[1]);
    for session in [&mut idle, &mut other] {
        session.extend(&prompt(40)).unwrap();
    }
    let until = Instant::now() + Duration::from_secs(20);
    while idle.kv_pool_bytes() >= full / 10 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(idle.kv_pool_bytes() < full / 10);
    assert_eq!(bits(idle.forward(&[9]).unwrap()), bits(other.forward(&[9]).unwrap()));
}

#[test]
#[ignore = "a measurement"]
fn cost_of_a_rest() {
    let model = embedded_in(MemoryPoolConfig::default());
    for kv in KV_DTYPES {
        let mut session = session(&model, kv, 64);
        session.extend(&prompt(1000)).unwrap();
        let used = Session::kv_bytes_per_token(model.config(), 1000, kv);
        let token = |session: &mut Session| {
            let start = Instant::now();
            session.forward(&[7]).unwrap();
            let time = start.elapsed();
            session.truncate(1000);
            time
        };
        let (mut awake, mut packing, mut rested) = (Duration::MAX, Duration::MAX, Duration::MAX);
        let mut left = 0;
        for _ in 0..9 {
            awake = awake.min(token(&mut session));
            let start = Instant::now();
            session.compress().unwrap();
            packing = packing.min(start.elapsed());
            left = session.kv_pool_bytes();
            rested = rested.min(token(&mut session));
        }
        let mb_s = |time: Duration| used as f64 / 1e6 / time.as_secs_f64();
        println!(
            "{kv}: {:.1} MB become {:.1}; compressed at {:.0} MB/s, back at {:.0} MB/s before the next token",
            used as f64 / 1e6,
            left as f64 / 1e6,
            mb_s(packing),
            mb_s(rested.saturating_sub(awake))
        );
    }
}

/// Opens the model as it is mapped, and reads all of it.
fn open_mapped(path: &Path) -> Model {
    let options = ModelOptions {
        n_threads: Some(1),
        layout: Some(Layout::TwoBit),
        preparation: Preparation::Never,
        head: HeadOptions { mode: HeadMode::F16, ..Default::default() },
        ..Default::default()
    };
    let model = Model::open_with(path, &options, &mut |_| ()).unwrap();
    let mut session = model.session(SessionOptions { max_seq_len: Some(8), ..Default::default() }).unwrap();
    // All rows of the embedding are read by the head.
    session.forward(&[1, 2]).unwrap();
    model
}

/// Resident bytes of the pages of `path` in a process, and its proportional share of them.
fn resident_and_share(process: &str, path: &Path) -> (usize, usize) {
    let smaps = std::fs::read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let (mut of_file, mut sums) = (false, (0, 0));
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let mut kilobytes = || words.next().unwrap().parse::<usize>().unwrap() * 1024;
        match key {
            "Rss:" if of_file => sums.0 += kilobytes(),
            "Pss:" if of_file => sums.1 += kilobytes(),
            _ if key.contains('-') => of_file = line.ends_with(path.to_str().unwrap()),
            _ => {}
        }
    }
    sums
}

/// Names the model to the process that shares it.
const SHARED_MODEL: &str = "BITNET_TEST_SHARED_MODEL";

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "reads /proc")]
fn two_processes_share_one_copy_of_the_weights() {
    if let Some(path) = std::env::var_os(SHARED_MODEL) {
        let _model = open_mapped(Path::new(&path));
        println!("ready");
        std::io::stdin().lines().next();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.gguf");
    let shape = SynthShape::named("2b-4t").unwrap();
    let config = ModelConfig {
        dim: 512,
        ffn_dim: 2048,
        n_layers: 4,
        n_heads: 8,
        n_kv_heads: 2,
        head_dim: 64,
        vocab_size: 8000,
        max_seq_len: 64,
        ..shape.config
    };
    let options = SynthOptions {
        shape: SynthShape { config, ..shape },
        format: TernaryFormat::I2s(I2sLayout::Block128),
        embedding: DenseFormat::F16,
        seed: 1,
    };
    synth::write(&path, &options, &mut |_| ()).unwrap();
    let file_bytes = std::fs::metadata(&path).unwrap().len() as usize;

    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memory::two_processes_share_one_copy_of_the_weights", "--nocapture"])
        .env(SHARED_MODEL, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Open until the child has ended, which prints more.
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.ends_with("ready")));
    let _model = open_mapped(&path);
    let (ours, theirs) = ("self".to_owned(), child.id().to_string());
    let [(rss_a, pss_a), (rss_b, pss_b)] = [ours, theirs].map(|process| resident_and_share(&process, &path));
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    println!("file {file_bytes}: resident {rss_a} and {rss_b}, proportional {pss_a} and {pss_b}");
    // Both have nearly the whole file, and together they have it once.
    assert!(rss_a.min(rss_b) > file_bytes * 9 / 10);
    assert!(pss_a + pss_b < file_bytes + file_bytes / 20, "{pss_a} + {pss_b} for {file_bytes}");
    assert!(pss_a.abs_diff(pss_b) < file_bytes / 20);
}
