//! Small models with random weights, written as a Hugging Face folder or as a GGUF file.
//!
//! Tests of equality need shapes that no published model has: dimensions that fill no vector, heads that do not add
//! up to the width, layers of mixed formats. The values are such that single bits matter: norms, scales and embeddings
//! hold subnormal numbers that a large factor brings back, so that a processor which flushes them gives other logits.

use std::path::{Path, PathBuf};

use bitnet_core::file::gguf::{GgmlType, GgufWriter};
use bitnet_core::file::safetensors::{self, Dtype, TensorSpec};
use bitnet_inference::config::Architecture;
use bitnet_inference::source::{Part, Proj, Role, RowOrder};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Activation;
use bitnet_quant::packing::TernaryFormat;

/// Every how many columns an embedding has a subnormal number, which the first norm makes large again.
const SUBNORMAL_STRIDE: usize = 7;
const SUBNORMAL: f32 = 1e-39;
const GAIN: f32 = 1e38;

/// How a projection is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoredAs {
    /// Packed ternary weights; in a folder always the packing of Hugging Face.
    Ternary(TernaryFormat),
    /// Dense values, which an online checkpoint has quantised when it is loaded.
    Dense(DenseFormat),
}

/// What a random model is to be like.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) architecture: Architecture,
    pub(crate) dim: usize,
    pub(crate) ffn_dim: usize,
    pub(crate) n_layers: usize,
    pub(crate) n_heads: usize,
    pub(crate) n_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) vocab_size: usize,
    pub(crate) max_seq_len: usize,
    pub(crate) tied: bool,
    pub(crate) input_norms: bool,
    pub(crate) activation: Activation,
    /// The format of each projection is one of these, by chance; at least one.
    pub(crate) projections: Vec<StoredAs>,
    pub(crate) embedding: DenseFormat,
    /// F32, F16 or BF16.
    pub(crate) norms: DenseFormat,
    /// Whether the blocks of a row have scales of their own, where the format can.
    pub(crate) differing_scales: bool,
    pub(crate) seed: u64,
}

impl Default for Recipe {
    /// A ternary BitNet model with dimensions that are no multiples of anything.
    fn default() -> Self {
        Recipe {
            architecture: Architecture::BitNet,
            dim: 76,
            ffn_dim: 148,
            n_layers: 2,
            n_heads: 6,
            n_kv_heads: 2,
            head_dim: 10,
            vocab_size: 61,
            max_seq_len: 300,
            tied: true,
            input_norms: false,
            activation: Activation::Relu2,
            projections: vec![StoredAs::Ternary(TernaryFormat::HfU8)],
            embedding: DenseFormat::BF16,
            norms: DenseFormat::F32,
            differing_scales: false,
            seed: 1,
        }
    }
}

impl Recipe {
    /// The least model of dense layers, for prompts that are long: no quantiser rounds away the last bits of what attention
    /// gives.
    pub(crate) fn small_and_dense(vocab_size: usize) -> Self {
        Recipe {
            architecture: Architecture::Qwen3,
            dim: 12,
            ffn_dim: 8,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 6,
            n_layers: 1,
            vocab_size,
            activation: Activation::Silu,
            projections: vec![StoredAs::Dense(DenseFormat::F32)],
            ..Default::default()
        }
    }
}

/// A tensor, not yet written.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    pub(crate) role: Role,
    rows: usize,
    pub(crate) cols: usize,
    stored_as: StoredAs,
    /// The values of a dense tensor: (rows, cols).
    pub(crate) values: Vec<f32>,
    /// The codes of a ternary tensor: (rows, cols).
    pub(crate) codes: Vec<u8>,
    /// Its scales: one, or one for each block.
    pub(crate) scales: Vec<f32>,
}

/// A model in memory.
#[derive(Debug, Clone)]
pub(crate) struct RandomModel {
    pub(crate) recipe: Recipe,
    tensors: Vec<Tensor>,
}

/// A counter-based generator (Steele et al., "SplitMix", 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Between -1 and 1.
    fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

impl RandomModel {
    pub(crate) fn new(recipe: Recipe) -> Self {
        let r = &recipe;
        let mut random = Random(r.seed);
        let mut tensors = vec![embedding(r, Role::Embedding, &mut random)];
        for l in 0..r.n_layers {
            let (q_dim, kv_dim) = (r.n_heads * r.head_dim, r.n_kv_heads * r.head_dim);
            let mut norms = vec![(Part::AttnNorm, r.dim), (Part::FfnNorm, r.dim)];
            match r.architecture {
                Architecture::BitNet => {
                    norms.extend([(Part::AttnSubNorm, q_dim), (Part::FfnSubNorm, r.ffn_dim)]);
                }
                Architecture::Qwen3 => norms.extend([(Part::QNorm, r.head_dim), (Part::KNorm, r.head_dim)]),
                Architecture::Llama => {}
            }
            for (proj, rows, cols) in [
                (Proj::Q, q_dim, r.dim),
                (Proj::K, kv_dim, r.dim),
                (Proj::V, kv_dim, r.dim),
                (Proj::O, r.dim, q_dim),
                (Proj::Gate, r.ffn_dim, r.dim),
                (Proj::Up, r.ffn_dim, r.dim),
                (Proj::Down, r.dim, r.ffn_dim),
            ] {
                if r.input_norms {
                    norms.push((Part::InputNorm(proj), cols));
                }
                tensors.push(projection(r, Role::Layer(l, Part::Proj(proj)), rows, cols, &mut random));
            }
            tensors.extend(norms.into_iter().map(|(part, n)| norm(r, Role::Layer(l, part), n, &mut random)));
        }
        tensors.push(norm(r, Role::OutputNorm, r.dim, &mut random));
        if !r.tied {
            tensors.push(embedding(r, Role::Head, &mut random));
        }
        let mut model = RandomModel { recipe, tensors };
        model.excite_subnormals();
        model
    }

    /// The tensor of a role, to be broken.
    pub(crate) fn tensor(&mut self, role: Role) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.role == role).unwrap_or_else(|| panic!("no {role:?}"))
    }

    /// Some ids of the vocabulary.
    pub(crate) fn prompt(&self, len: usize) -> Vec<u32> {
        let mut random = Random(self.recipe.seed ^ 0x5eed);
        (0..len).map(|_| random.below(self.recipe.vocab_size) as u32).collect()
    }

    /// Puts subnormal numbers where a later factor makes them count.
    fn excite_subnormals(&mut self) {
        let wide = |format| matches!(format, DenseFormat::F32 | DenseFormat::BF16);
        if !wide(self.recipe.norms) {
            return;
        }
        let dim = self.recipe.dim;
        if wide(self.recipe.embedding) {
            for row in self.tensor(Role::Embedding).values.chunks_exact_mut(dim) {
                row.iter_mut().step_by(SUBNORMAL_STRIDE).for_each(|v| *v *= SUBNORMAL);
            }
            let norm = self.tensor(Role::Layer(0, Part::AttnNorm));
            norm.values.iter_mut().step_by(SUBNORMAL_STRIDE).for_each(|v| *v *= GAIN);
        }
        let bitnet = self.recipe.architecture == Architecture::BitNet;
        let up = self.tensor(Role::Layer(0, Part::Proj(Proj::Up)));
        if bitnet && matches!(up.stored_as, StoredAs::Ternary(format) if format.block().is_none()) {
            up.scales[0] *= SUBNORMAL;
            let norm = self.tensor(Role::Layer(0, Part::FfnSubNorm));
            norm.values.iter_mut().for_each(|v| *v *= GAIN * 0.1);
        }
    }

    /// Writes a folder with `config.json` and `model.safetensors`, and returns it.
    ///
    /// Projections that are ternary are packed as Hugging Face does; `online` says that dense ones are to be quantised.
    pub(crate) fn write_hf(&self, folder: &Path, online: bool) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let r = &self.recipe;
        let stays_dense = |t: &&Tensor| !online && matches!(t.stored_as, StoredAs::Dense(_));
        let not_converted: Vec<String> = self
            .tensors
            .iter()
            .filter(stays_dense)
            .map(|t| t.role.hf_names(r.architecture)[0].clone())
            .collect();
        let config = serde_json::json!({
            "model_type": r.architecture.name(),
            "hidden_size": r.dim,
            "intermediate_size": r.ffn_dim,
            "num_hidden_layers": r.n_layers,
            "num_attention_heads": r.n_heads,
            "num_key_value_heads": r.n_kv_heads,
            "head_dim": r.head_dim,
            "vocab_size": r.vocab_size,
            "max_position_embeddings": r.max_seq_len,
            "rms_norm_eps": 1e-5,
            "hidden_act": self.hidden_act(),
            "tie_word_embeddings": r.tied,
            "quantization_config": {
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": if online { "online" } else { "offline" },
                "modules_to_not_convert": not_converted,
                "use_rms_norm": r.input_norms,
                "rms_norm_eps": 1e-5,
            },
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();

        let mut files = Vec::new();
        for t in &self.tensors {
            let stem = t.role.hf_names(r.architecture)[0].clone();
            let name = format!("{stem}.weight");
            match t.stored_as {
                StoredAs::Dense(format) => {
                    let matrix = !matches!(t.role, Role::OutputNorm) && t.rows > 1;
                    let shape = if matrix { vec![t.rows, t.cols] } else { vec![t.cols] };
                    files.push((name, hf_dtype(format), shape, dense_bytes(format, &t.values, t.cols)));
                }
                StoredAs::Ternary(_) => {
                    let mut packed = Vec::new();
                    TernaryFormat::HfU8.pack(&t.codes, t.rows, t.cols, 1.0, &mut packed).unwrap();
                    files.push((name, Dtype::U8, vec![t.rows / 4, t.cols], packed));
                    let scale = t.scales[0].to_le_bytes().to_vec();
                    files.push((format!("{stem}.weight_scale"), Dtype::F32, vec![1], scale));
                }
            }
        }
        let specs: Vec<_> =
            files.iter().map(|(name, dtype, shape, _)| TensorSpec { name, dtype: *dtype, shape }).collect();
        let path = folder.join("model.safetensors");
        safetensors::write(&path, &Default::default(), &specs, |i, sink| sink.write(&files[i].3)).unwrap();
        folder.into()
    }

    /// Writes `model.gguf` into `folder`, and returns its path.
    pub(crate) fn write_gguf(&self, folder: &Path) -> PathBuf {
        std::fs::create_dir_all(folder).unwrap();
        let r = &self.recipe;
        let arch = r.architecture.name();
        let mut writer = GgufWriter::new();
        writer.set("general.architecture", arch);
        for (key, value) in [
            ("vocab_size", r.vocab_size),
            ("context_length", r.max_seq_len),
            ("embedding_length", r.dim),
            ("block_count", r.n_layers),
            ("feed_forward_length", r.ffn_dim),
            ("attention.head_count", r.n_heads),
            ("attention.head_count_kv", r.n_kv_heads),
            ("attention.key_length", r.head_dim),
        ] {
            writer.set(format!("{arch}.{key}"), value as u32);
        }
        writer.set(format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32);
        writer.set(format!("{arch}.hidden_act"), self.hidden_act());

        let mut files = Vec::new();
        for t in &self.tensors {
            let stem = t.role.gguf_name();
            let (ggml_type, bytes) = match t.stored_as {
                StoredAs::Dense(format) => (format.into(), dense_bytes(format, &t.values, t.cols)),
                StoredAs::Ternary(format) => {
                    (GgmlType::from_ternary(format).unwrap(), self.ternary_bytes(t, format))
                }
            };
            let dims = if t.rows > 1 { vec![t.cols, t.rows] } else { vec![t.cols] };
            files.push((format!("{stem}.weight"), dims, ggml_type, bytes));
        }
        for (name, dims, ggml_type, _) in &files {
            writer.add_tensor(name, dims, *ggml_type);
        }
        let path = folder.join("model.gguf");
        writer.write(&path, |i, sink| sink.write(&files[i].3)).unwrap();
        path
    }

    /// The packed rows in the order of GGUF, which has the rotated projections of `llama` interleaved.
    fn ternary_bytes(&self, t: &Tensor, format: TernaryFormat) -> Vec<u8> {
        let head_dim = self.recipe.head_dim;
        let rotated = matches!(t.role, Role::Layer(_, Part::Proj(Proj::Q | Proj::K)));
        let order = match rotated && self.recipe.architecture == Architecture::Llama {
            true => RowOrder::Interleaved { head_dim },
            false => RowOrder::Halves,
        };
        let mut codes = vec![0; t.codes.len()];
        for (r, row) in t.codes.chunks_exact(t.cols).enumerate() {
            codes[order.file_row(r) * t.cols..][..t.cols].copy_from_slice(row);
        }
        let mut out = Vec::new();
        match format.block() {
            // The scales of interleaved rows stay where they are: they are as random as the rows.
            Some(block) => {
                for (codes, scale) in codes.chunks_exact(block).zip(t.scales.iter().cycle()) {
                    format.pack_rows(codes, block, *scale, &mut out).unwrap();
                }
            }
            None => format.pack(&codes, t.rows, t.cols, t.scales[0], &mut out).unwrap(),
        }
        out
    }

    fn hidden_act(&self) -> &'static str {
        match self.recipe.activation {
            Activation::Relu2 => "relu2",
            Activation::Silu => "silu",
        }
    }
}

fn embedding(r: &Recipe, role: Role, random: &mut Random) -> Tensor {
    let values = (0..r.vocab_size * r.dim).map(|_| random.signed()).collect();
    dense(role, r.vocab_size, r.dim, r.embedding, values)
}

fn norm(r: &Recipe, role: Role, n: usize, random: &mut Random) -> Tensor {
    let values = (0..n).map(|_| 1.0 + 0.5 * random.signed()).collect();
    dense(role, 1, n, r.norms, values)
}

fn projection(r: &Recipe, role: Role, rows: usize, cols: usize, random: &mut Random) -> Tensor {
    let stored_as = r.projections[random.below(r.projections.len())];
    let size = 1.0 / (cols as f32).sqrt();
    match stored_as {
        StoredAs::Dense(format) => {
            let values = (0..rows * cols).map(|_| 2.0 * size * random.signed()).collect();
            dense(role, rows, cols, format, values)
        }
        StoredAs::Ternary(format) => {
            let codes = (0..rows * cols).map(|_| random.below(3) as u8).collect();
            let n_scales = match format.block() {
                Some(block) if r.differing_scales => rows * cols / block,
                _ => 1,
            };
            // Rounded to half precision, so that every format holds the same scale. A block may have no weight.
            let mut scale = || half::f16::from_f32(size * (1.5 + random.signed())).to_f32();
            let mut scales: Vec<f32> = (0..n_scales).map(|_| scale()).collect();
            scales.iter_mut().skip(3).step_by(11).for_each(|s| *s = 0.0);
            Tensor { role, rows, cols, stored_as, values: Vec::new(), codes, scales }
        }
    }
}

fn dense(role: Role, rows: usize, cols: usize, format: DenseFormat, values: Vec<f32>) -> Tensor {
    let stored_as = StoredAs::Dense(format);
    Tensor { role, rows, cols, stored_as, values, codes: Vec::new(), scales: Vec::new() }
}

fn dense_bytes(format: DenseFormat, values: &[f32], cols: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for row in values.chunks_exact(cols) {
        format.quantize_row(row, &mut out).unwrap();
    }
    out
}

fn hf_dtype(format: DenseFormat) -> Dtype {
    match format {
        DenseFormat::F32 => Dtype::F32,
        DenseFormat::F16 => Dtype::F16,
        DenseFormat::BF16 => Dtype::BF16,
        other => panic!("a checkpoint has no {other}"),
    }
}
