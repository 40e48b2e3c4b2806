//! Reference logits of Hugging Face transformers, by the rules of tests/goldens/README.md.

use std::path::{Path, PathBuf};

use bitnet_core::BitNetDType;
use bitnet_core::file::Mapping;
use bitnet_core::file::safetensors::SafeTensors;
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_core::tokenizer::Message;
use bitnet_inference::{Model, Session, SessionOptions};

/// Positions with a spread below this are calm.
const CALM_SPREAD: f32 = 1e-4;
/// What calm positions agree to.
const CALM_TOLERANCE: f32 = 1e-3;
/// What the others of the stories model agree to.
const STORIES_TOLERANCE: f32 = 0.7;

/// The goldens, from the copy in the repository and from the shared folder beside it when that is there.
fn folders(name: &str) -> Vec<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = manifest.join("tests/goldens").join(name);
    let shared = manifest.join("../../../shared/goldens").join(name);
    assert!(own.is_dir(), "{} is part of the repository", own.display());
    [own, shared].into_iter().filter(|f| f.is_dir()).collect()
}

struct Golden(SafeTensors);

impl Golden {
    fn open(folder: &Path) -> Self {
        Golden(SafeTensors::parse(Mapping::open(&folder.join("golden.safetensors")).unwrap()).unwrap())
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}"));
        tensor.bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let tensor = self.0.get(name)?;
        Some(tensor.bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
    }
}

fn session(model: &Model, kv: BitNetDType) -> Session {
    let precision = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, kv);
    model.session(SessionOptions { precision, ..Default::default() }).unwrap()
}

fn all_logits(model: &Model, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    session(model, BitNetDType::F32)
        .forward_all(ids, |_, logits| {
            rows.push(logits.to_vec());
            Ok(())
        })
        .unwrap();
    rows
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]).then(b.cmp(a))).unwrap() as u32
}

/// Compares every prompt of one golden; `rough` is the tolerance of positions that are not calm.
fn compare(model: &Model, golden: &Golden, rough: Option<f32>) {
    let mut calm_positions = 0;
    for p in 0.. {
        let Some(ids) = golden.ids(&format!("p{p}.ids")) else { break };
        let (want, spread) = (golden.f32s(&format!("p{p}.logits")), golden.f32s(&format!("p{p}.spread")));
        let rough = rough.unwrap_or(4.0 * spread.iter().copied().fold(0.0, f32::max)).max(CALM_TOLERANCE);
        let rows = all_logits(model, &ids);
        for (t, (row, want)) in rows.iter().zip(want.chunks_exact(model.config().vocab_size)).enumerate() {
            let error = row.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let tolerance = if spread[t] < CALM_SPREAD { CALM_TOLERANCE } else { rough };
            calm_positions += usize::from(spread[t] < CALM_SPREAD);
            assert!(error <= tolerance, "prompt {p}, position {t}: off by {error}, spread {}", spread[t]);
        }
        let (greedy, margin) =
            (golden.ids(&format!("p{p}.greedy")).unwrap(), golden.f32s(&format!("p{p}.margin")));
        let forced: Vec<u32> = ids.iter().chain(&greedy).copied().collect();
        let rows = all_logits(model, &forced[..forced.len() - 1]);
        for (step, (id, margin)) in greedy.iter().zip(&margin).enumerate() {
            let got = argmax(&rows[ids.len() - 1 + step]);
            assert!(
                got == *id || *margin <= rough,
                "prompt {p}, step {step}: {got} instead of {id}, margin {margin}"
            );
        }
    }
    assert!(calm_positions > 0, "a golden without calm positions compares nothing closely");
}

fn check_family(name: &str) {
    for folder in folders(name) {
        compare(&Model::open(&folder).unwrap(), &Golden::open(&folder), None);
    }
}

#[test]
fn bitnet_offline() {
    check_family("bitnet-offline");
}

#[test]
fn bitnet_online() {
    check_family("bitnet-online");
}

#[test]
fn llama_bitlinear() {
    check_family("llama-bitlinear");
}

#[test]
fn llama_bitlinear_rmsnorm() {
    check_family("llama-bitlinear-rmsnorm");
}

#[test]
fn llama_bitlinear_headdim() {
    check_family("llama-bitlinear-headdim");
}

#[test]
fn llama_bitlinear_rope3() {
    check_family("llama-bitlinear-rope3");
}

#[test]
fn llama_autobitlinear_offline() {
    check_family("llama-autobitlinear-offline");
}

#[test]
fn llama_autobitlinear_rmsnorm_online() {
    check_family("llama-autobitlinear-rmsnorm-online");
}

#[test]
fn qwen3_bitlinear() {
    check_family("qwen3-bitlinear");
}

#[test]
fn stories() {
    for folder in folders("stories") {
        compare(&Model::embedded().unwrap(), &Golden::open(&folder), Some(STORIES_TOLERANCE));
    }
}

#[test]
fn stories_loss_over_900_tokens() {
    let model = Model::embedded().unwrap();
    for folder in folders("stories") {
        let golden = Golden::open(&folder);
        let ids = golden.ids("long.ids").unwrap();
        for kv in [BitNetDType::F32, BitNetDType::F16, BitNetDType::I8] {
            let (mut nll, mut last) = (Vec::new(), Vec::new());
            session(&model, kv)
                .forward_all(&ids, |t, logits| {
                    match ids.get(t + 1) {
                        Some(next) => nll.push(negative_log_likelihood(logits, *next)),
                        None => last = logits.to_vec(),
                    }
                    Ok(())
                })
                .unwrap();
            let mean = nll.iter().sum::<f64>() / nll.len() as f64;
            println!(
                "long.nll with a {kv} cache: {mean:.6}, perplexity {:.6}",
                bitnet_quant::float::exp64(mean)
            );
            assert!((mean - 0.3266).abs() <= 0.001, "{kv}: {mean}");
            if kv == BitNetDType::F32 {
                let want = golden.f32s("long.last_logits");
                assert_eq!(last.len(), want.len());
                let error = last.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error <= STORIES_TOLERANCE, "the last logits are off by {error}");
            }
        }
    }
}

fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let sum: f64 = logits.iter().map(|l| bitnet_quant::float::exp64(f64::from(*l) - max)).sum();
    max + bitnet_quant::float::ln64(sum) - f64::from(logits[id as usize])
}

/// The bf16 master weights are 13 MB and not in the repository; quantised when loaded, they are the packed model.
#[test]
fn stories_master_weights_load_as_the_packed_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories-bf16");
    if !folder.is_dir() {
        println!("skipped: {} is not there (bf16 master weights of the stories model)", folder.display());
        return;
    }
    let (master, packed) = (Model::open(&folder).unwrap(), Model::embedded().unwrap());
    let ids = Golden::open(&folders("stories")[0]).ids("p0.ids").unwrap();
    for (a, b) in all_logits(&master, &ids).iter().zip(all_logits(&packed, &ids)) {
        // The packed scales are rounded to bf16, the master's are not.
        let error = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(error < STORIES_TOLERANCE, "{error}");
    }
}

#[test]
fn stories_prompts_are_encoded_as_the_reference_does() {
    let model = Model::embedded().unwrap();
    let text = model.text().unwrap();
    for folder in folders("stories") {
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        for prompt in golden["prompts"].as_array().unwrap() {
            let want: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
            let got = match prompt["messages"].as_array() {
                Some(messages) => {
                    let field = |m: &serde_json::Value, f: &str| m[f].as_str().unwrap().to_owned();
                    let messages: Vec<Message> = messages
                        .iter()
                        .map(|m| Message { role: field(m, "role"), content: field(m, "content") })
                        .collect();
                    text.encode_chat(&messages).unwrap()
                }
                None => text.tokenizer.encode(prompt["prompt"].as_str().unwrap(), false).unwrap(),
            };
            assert_eq!(got, want);
        }
    }
}
