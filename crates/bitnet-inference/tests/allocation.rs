//! What the engine allocates: nothing while it runs, and no more than a file justifies while it opens one.
//!
//! A binary of its own, because the allocator that counts is that of the whole process; and one test, because the
//! allocations of another that ran beside it would be counted too.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

#[allow(dead_code, reason = "the other binary has more themes")]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet_core::BitNetDType;
use bitnet_core::file::gguf::{GgmlType, GgufWriter};
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_inference::config::Architecture;
use bitnet_inference::convert::compress;
use bitnet_inference::quantize::{QuantizeOptions, QuantizeTarget, quantize};
use bitnet_inference::source;
use bitnet_inference::{
    HeadMode, HeadOptions, Model, ModelOptions, Sampler, SamplingOptions, Session, SessionOptions,
};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::{Activation, Kernels};
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use common::random_model::{Random, RandomModel, Recipe, StoredAs};
use common::{KV_DTYPES, isas, open, session};

/// Opening a file may have this much allocated beside twice the file: names, messages, a layer's descriptions.
const ALLOWANCE: usize = 64 << 10;

/// Counts what is asked of the system, also what it refuses.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(size: usize) {
    CALLS.fetch_add(1, Ordering::SeqCst);
    let live = LIVE.fetch_add(size, Ordering::SeqCst) + size;
    PEAK.fetch_max(live, Ordering::SeqCst);
}

// SAFETY: every call is passed on to the system's allocator as it is; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's contract is that of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old block and the new one exist together while the bytes move.
        count(size);
        LIVE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.realloc(start, layout, size) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations, on all threads, while `f` runs.
fn calls(f: impl FnOnce()) -> usize {
    let before = CALLS.load(Ordering::SeqCst);
    f();
    CALLS.load(Ordering::SeqCst) - before
}

/// The most bytes that were allocated at one time while `f` ran, beside what was before.
fn peak<T>(f: impl FnOnce() -> T) -> (usize, T) {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let result = f();
    (PEAK.load(Ordering::SeqCst) - before, result)
}

#[test]
fn forward_allocates_nothing_and_opening_no_more_than_the_file_justifies() {
    assert!(calls(|| drop(std::hint::black_box(vec![1u8; 10]))) == 1, "the counter counts");
    running_allocates_nothing();
    choosing_allocates_nothing();
    sound_files();
    lying_gguf_files();
    lying_safetensors_files();
    lying_configurations();
    damaged_files();
    quantising_streams();
}

/// Dimensions that waste nothing on padding, and formats by turns.
fn wide(projections: Vec<StoredAs>) -> Recipe {
    Recipe {
        dim: 256,
        ffn_dim: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        vocab_size: 40,
        embedding: DenseFormat::F16,
        projections,
        differing_scales: true,
        ..Default::default()
    }
}

/// Quantising never has a model in memory, nor a matrix.
fn quantising_streams() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        dim: 512,
        ffn_dim: 2048,
        architecture: Architecture::Llama,
        activation: Activation::Silu,
        norms: DenseFormat::BF16,
        ..wide(vec![StoredAs::Dense(DenseFormat::BF16)])
    };
    let path = RandomModel::new(recipe).write_hf(&folder.path().join("dense"), false);
    let source = source::open(&path, I2sLayout::default()).unwrap();
    let largest = 512 * 2048 * size_of::<u16>();
    let gguf = QuantizeTarget::Gguf(TernaryFormat::Tq2_0);
    for (target, sparsity) in [(gguf, 0.0), (gguf, 0.8), (QuantizeTarget::HuggingFace, 0.0)] {
        let options = QuantizeOptions { target, sparsity };
        let output = folder.path().join("out");
        let (bytes, written) = peak(|| quantize(&*source, &output, &options, &mut |_| ()));
        written.unwrap();
        println!("{target:?}, sparsity {sparsity}: {bytes} bytes, the largest matrix has {largest}");
        assert!(bytes <= 3 * largest, "{target:?}: {bytes} for matrices of {largest}");
        if output.is_file() {
            fs::remove_file(output).unwrap();
        }
    }

    // Decoded tensors do not come from the allocator.
    let compressed = folder.path().join("model.bitnet");
    let report = compress(&path, &compressed, &mut |_| ()).unwrap();
    assert!(report.after < report.before, "tensors are coded: {report:?}");
    let source = source::open(&compressed, I2sLayout::default()).unwrap();
    let options = QuantizeOptions { target: gguf, sparsity: 0.0 };
    let Some(before) = anonymous_bytes() else {
        println!("skipped: the system does not say how much anonymous memory a process has");
        return;
    };
    let mut most = 0;
    let mut watch = |_| most = most.max(anonymous_bytes().unwrap().saturating_sub(before));
    quantize(&*source, &folder.path().join("from compressed"), &options, &mut watch).unwrap();
    println!("compressed: {most} bytes, the largest matrix has {largest}");
    assert!(most >= largest / 2, "{most} bytes are not even a decoded matrix");
    assert!(most <= 3 * largest, "compressed: {most} for matrices of {largest}");
}

/// Memory of this process that no file is behind, as Linux counts it.
fn anonymous_bytes() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: usize = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

fn packed() -> Vec<StoredAs> {
    vec![StoredAs::Ternary(TernaryFormat::HfU8)]
}

fn running_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let tq = [TernaryFormat::Tq1_0, TernaryFormat::Tq2_0].map(StoredAs::Ternary).into();
    let models = [
        RandomModel::new(Recipe::default()).write_hf(&folder.path().join("ternary"), false),
        RandomModel::new(Recipe { input_norms: true, ..Recipe::default() })
            .write_hf(&folder.path().join("inner norms"), false),
        RandomModel::new(wide(tq)).write_gguf(&folder.path().join("blocks")),
        RandomModel::new(wide(vec![StoredAs::Ternary(TernaryFormat::Q2_0)]))
            .write_gguf(&folder.path().join("q2_0")),
        RandomModel::new(wide(vec![StoredAs::Dense(DenseFormat::Q8_0), StoredAs::Dense(DenseFormat::BF16)]))
            .write_gguf(&folder.path().join("dense")),
    ];
    for path in models {
        for isa in isas() {
            let model = open(&path, isa, 3);
            for kv in KV_DTYPES {
                let mut session = session(&model, kv, 8);
                let of_pool = model.pool().get_metrics().allocation_count;
                let n = calls(|| run(&mut session));
                assert_eq!(n, 0, "{} on {isa}, {kv} cache", path.display());
                assert_eq!(model.pool().get_metrics().allocation_count, of_pool);
                session.truncate(0);
                session.start_profile();
                let n = calls(|| run(&mut session));
                assert_eq!(n, 0, "{} on {isa}, {kv} cache, profiled", path.display());
                // What a batch does beside is the same everywhere. The test must be over before the harness, whose
                // allocations count, says that it takes long.
                if isa == Kernels::best().isa() {
                    batches_allocate_nothing(&model, kv);
                }
            }
        }
    }
}

/// Prompts of several lengths, in parts and beside what others have chosen, and rows that become free.
fn batches_allocate_nothing(model: &Model, kv: BitNetDType) {
    let precision = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, kv);
    let options = SessionOptions { chunk: Some(8), precision, ..Default::default() };
    let mut batch = model.batch(10, &options).unwrap();
    for (i, temperature) in [0.0, 1.0, 0.0, 0.7, 0.0, 0.0, 1.0, 0.0, 0.0].into_iter().enumerate() {
        let sampling = SamplingOptions { temperature, ..Default::default() };
        let sampler = Sampler::new(sampling, model.config().vocab_size).unwrap();
        batch.start(&[1; 20][..1 + 2 * i], sampler).unwrap();
    }
    let mut chosen = 0;
    let n = calls(|| {
        for _ in 0..20 {
            batch.step(|row, token| {
                chosen += usize::from(token.is_ok());
                row > 2 || chosen < 30
            });
        }
    });
    assert!(chosen > 50 && batch.n_free() == 4, "{chosen} tokens, {} rows free", batch.n_free());
    assert_eq!(n, 0, "{kv} cache");
}

/// A token, a prompt of several chunks, tokens taken back, and an error that needs no memory.
fn run(session: &mut Session) {
    session.forward(&[1]).unwrap();
    session.forward(&[2; 20]).unwrap();
    session.truncate(5);
    session.forward_all(&[3; 9], |_, _| Ok(())).unwrap();
    assert!(session.forward(&[u32::MAX]).is_err());
}

/// Enough rows that a derived head leaves most of them out.
fn choosing_allocates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path =
        RandomModel::new(Recipe { vocab_size: 700, ..Recipe::default() }).write_hf(folder.path(), false);
    for mode in [HeadMode::Exact, HeadMode::Int4, HeadMode::F16] {
        let head = HeadOptions { mode, min_rows: 0 };
        let options = ModelOptions { head, n_threads: Some(3), ..Default::default() };
        let model = Model::open_with(&path, &options, &mut |_| ()).unwrap();
        for (temperature, top_k) in [(0.0, 0), (1.0, 0), (1.0, 3), (1.0, 600)] {
            let options = SamplingOptions { temperature, top_k, ..Default::default() };
            let mut sampler = Sampler::new(options, 700).unwrap();
            let mut session = session(&model, KV_DTYPES[0], 8);
            let mut derived = 0;
            let n = calls(|| {
                let mut token = session.sample(&[1, 2, 3], &mut sampler, 3).unwrap();
                for _ in 0..20 {
                    token = session.sample(&[token], &mut sampler, 3).unwrap();
                    derived += usize::from(session.head_candidates().is_some());
                }
            });
            assert_eq!(n, 0, "{mode:?}, temperature {temperature}, top-k {top_k}");
            assert!(mode == HeadMode::F16 || top_k > 0 || derived > 0, "{mode:?} computes few rows");
        }
    }
}

/// What opening `path` allocates is at most twice `file_bytes` and the allowance.
#[track_caller]
fn check(path: &Path, what: &str) -> Result<(), String> {
    let file_bytes = match path.is_dir() {
        true => fs::read_dir(path).unwrap().map(|f| f.unwrap().metadata().unwrap().len() as usize).sum(),
        false => fs::metadata(path).unwrap().len() as usize,
    };
    let pool = HybridMemoryPool::new().unwrap();
    let options = ModelOptions { n_threads: Some(1), pool: Some(pool.clone()), ..Default::default() };
    let (peak, result) = peak(|| Model::open_with(path, &options, &mut |_| ()).map(drop));
    // The pool has its memory from the system, not from the allocator.
    let peak = peak + pool.get_metrics().peak_allocated;
    let limit = 2 * file_bytes + ALLOWANCE;
    assert!(peak <= limit, "{what}: {peak} bytes for a file of {file_bytes}");
    result.map_err(|e| e.to_string())
}

#[track_caller]
fn check_refused(path: &Path, what: &str, named: &str) {
    let message = check(path, what).expect_err(what);
    assert!(message.contains(named), "{what}: {message}");
}

fn sound_files() {
    let folder = tempfile::tempdir().unwrap();
    for (name, projections, online) in [
        ("packed", packed(), false),
        ("master", vec![StoredAs::Dense(DenseFormat::BF16)], true),
        ("dense", vec![StoredAs::Dense(DenseFormat::F32)], false),
    ] {
        let path = RandomModel::new(wide(projections)).write_hf(&folder.path().join(name), online);
        check(&path, name).unwrap();
    }
    let i2_s = TernaryFormat::I2s(I2sLayout::Block128);
    for format in [i2_s, TernaryFormat::Tq1_0, TernaryFormat::Tq2_0, TernaryFormat::Q2_0] {
        for architecture in [Architecture::BitNet, Architecture::Llama] {
            let recipe = Recipe { architecture, ..wide(vec![StoredAs::Ternary(format)]) };
            let path = RandomModel::new(recipe).write_gguf(&folder.path().join(format.name()));
            check(&path, format.name()).unwrap();
        }
    }
}

fn lying_gguf_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let head = |n_tensors: u64, n_keys: u64| {
        [b"GGUF".as_slice(), &3u32.to_le_bytes(), &n_tensors.to_le_bytes(), &n_keys.to_le_bytes()].concat()
    };
    let key = |value_type: u32, value: &[u8]| {
        [1u64.to_le_bytes().as_slice(), b"k", &value_type.to_le_bytes(), value].concat()
    };
    let array = |items: u32, n: u64| [items.to_le_bytes().as_slice(), &n.to_le_bytes()].concat();
    let tensor = |dims: &[u64], ggml_type: u32, offset: u64| {
        let dims: Vec<u8> = (dims.len() as u32)
            .to_le_bytes()
            .into_iter()
            .chain(dims.iter().flat_map(|d| d.to_le_bytes()))
            .collect();
        [1u64.to_le_bytes().as_slice(), b"t", &dims, &ggml_type.to_le_bytes(), &offset.to_le_bytes()].concat()
    };
    let huge = u64::MAX;
    let cases: [(&str, Vec<u8>); 12] = [
        ("tensors without end", head(huge, 0)),
        ("as many tensors as are allowed", head(65_536, 0)),
        ("keys without end", head(0, huge)),
        ("as many keys as are allowed", head(0, 65_536)),
        ("a key without end", [head(0, 1), huge.to_le_bytes().to_vec(), vec![0; 64]].concat()),
        ("a string without end", [head(0, 1), key(8, &huge.to_le_bytes())].concat()),
        ("a string of a gigabyte", [head(0, 1), key(8, &(1u64 << 30).to_le_bytes())].concat()),
        ("an array without end", [head(0, 1), key(9, &array(4, huge))].concat()),
        ("an array of four gigabytes", [head(0, 1), key(9, &array(4, 1 << 30))].concat()),
        ("an array of arrays", [head(0, 1), key(9, &array(9, 1 << 30))].concat()),
        ("a tensor of 2^62 elements", [head(1, 0), tensor(&[1 << 31, 1 << 31], 0, 0)].concat()),
        ("a tensor far away", [head(1, 0), tensor(&[32], 0, 1 << 62), vec![0; 256]].concat()),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        check_refused(&path, what, "model.gguf");
    }
    // Descriptions of nothing, more than the file justifies and as many as it does.
    for (n, data) in [(65_536, 0), (128, 32), (8_192, 4 << 20)] {
        let tensors = (0..n).flat_map(|i| {
            let name = format!("{i:05}");
            // A type that nobody knows has no length that could be checked.
            [5u64.to_le_bytes().as_slice(), name.as_bytes(), &[0; 4], &99u32.to_le_bytes(), &[0; 8]].concat()
        });
        fs::write(&path, head(n, 0).into_iter().chain(tensors).chain(vec![0; data]).collect::<Vec<u8>>())
            .unwrap();
        let named = if n == 65_536 { "tensors are announced" } else { "general.architecture" };
        check_refused(&path, &format!("{n} tiny tensors, {data} bytes of data"), named);
    }
    for (n, data) in [(65_536, 0), (8_192, 4 << 20)] {
        let keys = (0..n).flat_map(|i| {
            [5u64.to_le_bytes().as_slice(), format!("{i:05}").as_bytes(), &0u32.to_le_bytes(), &[1]].concat()
        });
        fs::write(&path, head(0, n).into_iter().chain(keys).chain(vec![0; data]).collect::<Vec<u8>>())
            .unwrap();
        let named = if data == 0 { "metadata keys are announced" } else { "general.architecture" };
        check_refused(&path, &format!("{n} tiny keys, {data} bytes of data"), named);
    }
    // A configuration of a terabyte, and no weights.
    for with_embedding in [false, true] {
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", "llama");
        for (key, value) in [
            ("vocab_size", 1 << 24),
            ("context_length", 1 << 20),
            ("embedding_length", 131_072),
            ("block_count", 1024),
            ("feed_forward_length", 131_072),
            ("attention.head_count", 256),
            ("attention.key_length", 512),
        ] {
            writer.set(format!("llama.{key}"), value as u32);
        }
        writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        if with_embedding {
            writer.add_tensor("token_embd.weight", &[32, 4], GgmlType::Dense(DenseFormat::F32));
        }
        writer.write(&path, |_, sink| sink.write(&[0; 512])).unwrap();
        check_refused(&path, "a configuration of a terabyte", "token_embd.weight");
    }
}

fn lying_safetensors_files() {
    let folder = tempfile::tempdir().unwrap();
    RandomModel::new(wide(packed())).write_hf(folder.path(), false);
    let path = folder.path().join("model.safetensors");
    let file = |len: u64, json: &str| [len.to_le_bytes().as_slice(), json.as_bytes()].concat();
    let entry = |dtype: &str, shape: &str, end: u64| {
        let json = format!(
            r#"{{"model.embed_tokens.weight":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        );
        file(json.len() as u64, &json)
    };
    let cases = [
        ("a header without end", file(u64::MAX, "{}")),
        ("a header of 2^63 bytes", file(1 << 63, "{}")),
        ("the longest header allowed", file(100_000_000, "{}")),
        ("no header", file(0, "")),
        ("a tensor of a terabyte", entry("F32", "[1048576,262144]", 1 << 40)),
        ("a tensor without end", entry("U8", "[18446744073709551615]", u64::MAX)),
        ("a tensor whose size overflows", entry("F32", "[4294967296,4294967296,4294967296]", 0)),
        ("a tensor of nothing", entry("F32", "[0,131072]", 0)),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        check_refused(folder.path(), what, "model");
    }
    // Descriptions of nothing, more than the file justifies and as many as it does.
    let long = "n".repeat(250);
    for (n, name, data, named) in [
        (400_000, "", 0, "describes at most"),
        (127, "", 0, "model.embed_tokens.weight"),
        (8_192, "", 4 << 20, "model.embed_tokens.weight"),
        (8_192, long.as_str(), 2 << 20, "model.embed_tokens.weight"),
    ] {
        let empty =
            (0..n).map(|i| format!(r#""{name}{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#));
        let json = format!(
            r#"{{{}"data":{{"dtype":"U8","shape":[{data}],"data_offsets":[0,{data}]}}}}"#,
            empty.collect::<String>()
        );
        let bytes = [file(json.len() as u64, &json), vec![0; data]].concat();
        fs::write(&path, bytes).unwrap();
        check_refused(folder.path(), &format!("{n} tiny tensors, {data} bytes of data"), named);
    }
    fs::remove_file(&path).unwrap();
    let index = r#"{"weight_map":{"model.embed_tokens.weight":"../../../../dev/zero"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    check_refused(folder.path(), "an index that points elsewhere", "no plain file name");
}

/// Models of up to a terabyte, said of weights of some kilobytes.
fn lying_configurations() {
    let folder = tempfile::tempdir().unwrap();
    RandomModel::new(wide(packed())).write_hf(folder.path(), false);
    let path = folder.path().join("config.json");
    let sound: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let everything = [
        ("hidden_size", 131_072),
        ("intermediate_size", 131_072),
        ("num_hidden_layers", 1024),
        ("num_attention_heads", 256),
        ("num_key_value_heads", 256),
        ("head_dim", 512),
        ("vocab_size", 1 << 24),
        ("max_position_embeddings", 1 << 20),
    ];
    let single = everything.iter().map(|one| vec![*one]);
    for changes in single.chain([everything.to_vec()]) {
        let mut config = sound.clone();
        for (key, value) in &changes {
            config[*key] = (*value).into();
        }
        fs::write(&path, config.to_string()).unwrap();
        let result = check(folder.path(), &format!("{changes:?}"));
        // A longer context alone costs nothing before a session asks for it.
        assert_eq!(
            result.is_ok(),
            changes == [("max_position_embeddings", 1 << 20)],
            "{changes:?}: {result:?}"
        );
    }
    let empty = folder.path().join("model.safetensors");
    fs::write(&empty, [2u64.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
    check_refused(folder.path(), "a terabyte without weights", "model.embed_tokens.weight");
}

/// Flipped bits in what describes the weights make lies that nobody thought of.
fn damaged_files() {
    let folder = tempfile::tempdir().unwrap();
    let hf =
        RandomModel::new(Recipe { n_layers: 1, ..wide(packed()) }).write_hf(&folder.path().join("hf"), false);
    let tq1_0 = vec![StoredAs::Ternary(TernaryFormat::Tq1_0)];
    let gguf = RandomModel::new(Recipe { n_layers: 1, ..wide(tq1_0) }).write_gguf(folder.path());
    let mut random = Random(11);
    for (model, file) in
        [(&gguf, gguf.clone()), (&hf, hf.join("model.safetensors")), (&hf, hf.join("config.json"))]
    {
        let sound = fs::read(&file).unwrap();
        for _ in 0..150 {
            let mut bytes = sound.clone();
            let at = random.below(sound.len().min(1500));
            bytes[at] ^= 1 << random.below(8);
            fs::write(&file, &bytes).unwrap();
            // Whether it is refused is the theme of another test.
            let _ = check(model, &format!("{} with a bit of byte {at} flipped", file.display()));
        }
        fs::write(&file, sound).unwrap();
    }
}
