//! Weights: immutable, shared, mapped from the file where its layout is the kernels' own, packed once where it is not.

use bitnet_core::conversion::{ConversionConfig, ConversionEngine};
use bitnet_core::file::Bytes;
use bitnet_core::memory::{Buffer, HybridMemoryPool};
use bitnet_core::mixed_precision::{ComponentType, PrecisionManager};
use bitnet_core::{BitNetDType, BitNetTensor, Error as CoreError};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::layout::{self, Scales, TernaryView};
use bitnet_quant::linear::DenseView;
use bitnet_quant::packing::{I2sLayout, TernaryFormat, i2_s};
use bitnet_quant::reduce::MeanAbs;
use bitnet_quant::ternary::{weight_code, weight_factor};

use crate::Result;
use crate::config::{Architecture, ModelConfig};
use crate::source::{Part, Proj, Role, RowOrder, Source, StoredData, StoredTensor};

/// Rows that are unpacked at a time.
const UNPACK_ROWS: usize = 16;

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Dense, // (vocab_size, dim)
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Norm,             // (dim)
    pub(crate) head: Option<Dense>,           // (vocab_size, dim); the embedding when absent
    pub(crate) inverse_frequencies: Vec<f32>, // (head_dim / 2)
}

/// The weights of one decoder block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Norm,             // (dim)
    pub(crate) q_proj: Linear,              // (n_heads * head_dim, dim)
    pub(crate) k_proj: Linear,              // (n_kv_heads * head_dim, dim)
    pub(crate) v_proj: Linear,              // (n_kv_heads * head_dim, dim)
    pub(crate) q_norm: Option<Norm>,        // (head_dim)
    pub(crate) k_norm: Option<Norm>,        // (head_dim)
    pub(crate) attn_sub_norm: Option<Norm>, // (n_heads * head_dim)
    pub(crate) o_proj: Linear,              // (dim, n_heads * head_dim)
    pub(crate) ffn_norm: Norm,              // (dim)
    pub(crate) gate_proj: Linear,           // (ffn_dim, dim)
    pub(crate) up_proj: Linear,             // (ffn_dim, dim)
    pub(crate) ffn_sub_norm: Option<Norm>,  // (ffn_dim)
    pub(crate) down_proj: Linear,           // (dim, ffn_dim)
}

/// The weights of a root-mean-square norm.
#[derive(Debug)]
pub(crate) struct Norm {
    weight: BitNetTensor, // (n), F32
    pub(crate) eps: f32,
}

impl Norm {
    pub(crate) fn weight(&self) -> &[f32] {
        self.weight.as_slice()
    }
}

/// A projection, with the norm that some models have before its quantiser.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) input_norm: Option<Norm>, // (cols)
    pub(crate) matrix: Matrix,
}

/// The matrix of a projection.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// Ternary weights, activations quantised to int8.
    BitLinear(Ternary),
    /// Ternary weights of families that do not quantise activations.
    TernaryF32(Ternary),
    /// Neither is quantised.
    Dense(Dense),
}

/// A ternary matrix in the kernels' layout.
#[derive(Debug)]
pub(crate) struct Ternary {
    codes: BitNetTensor, // (rows, padded cols), BitNet158
    scales: OwnedScales,
    rows: usize,
    cols: usize,
}

#[derive(Debug)]
enum OwnedScales {
    Tensor(f32),
    Blocks { d: Buffer<f32>, block: usize },
}

impl Ternary {
    pub(crate) fn view(&self) -> TernaryView<'_> {
        let scales = match &self.scales {
            OwnedScales::Tensor(scale) => Scales::Tensor(*scale),
            OwnedScales::Blocks { d, block } => Scales::Blocks { d, block: *block },
        };
        TernaryView::new(self.codes.as_bytes(), self.rows, self.cols, scales)
    }
}

/// A dense matrix as the file stores it.
#[derive(Debug)]
pub(crate) struct Dense {
    bytes: Bytes,
    format: DenseFormat,
    rows: usize,
    cols: usize,
}

impl Dense {
    pub(crate) fn view(&self) -> DenseView<'_> {
        DenseView::new(&self.bytes, self.rows, self.cols, self.format)
    }
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Layers loaded.
    pub done: usize,
    /// Layers there are.
    pub total: usize,
}

impl Weights {
    /// Loads every tensor that `config` calls for, with `n_threads` threads for those that have to be unpacked.
    pub(crate) fn load(
        source: &dyn Source,
        pool: &HybridMemoryPool,
        precision: &PrecisionManager,
        n_threads: usize,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let config = source.config();
        let engine = ConversionEngine::new(ConversionConfig::default(), pool.clone())?;
        let loader = Loader { source, config, pool, engine, precision, n_threads };
        let embedding = loader.dense(Role::Embedding)?.ok_or_else(|| loader.missing(Role::Embedding))?;
        // Grown as layers are found: a configuration may claim any number of them.
        let mut layers = Vec::new();
        for l in 0..config.n_layers {
            layers.push(loader.layer(l)?);
            progress(LoadProgress { done: l + 1, total: config.n_layers });
        }
        Ok(Weights {
            embedding,
            layers,
            output_norm: loader.norm(Role::OutputNorm, config.dim, config.norm_eps)?,
            head: loader.dense(Role::Head)?,
            inverse_frequencies: config.inverse_frequencies(),
        })
    }

    /// The matrix of the head.
    pub(crate) fn head(&self) -> &Dense {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

struct Loader<'a> {
    source: &'a dyn Source,
    config: &'a ModelConfig,
    pool: &'a HybridMemoryPool,
    engine: ConversionEngine,
    precision: &'a PrecisionManager,
    n_threads: usize,
}

impl Loader<'_> {
    fn layer(&self, l: usize) -> Result<Layer> {
        let c = self.config;
        let role = |part| Role::Layer(l, part);
        let norm = |part, n| self.norm(role(part), n, c.norm_eps);
        // Sub-norms belong to BitNet and head norms to Qwen3: files of these without them are incomplete.
        let norm_of = |part, n, architecture| {
            if c.architecture == architecture { norm(part, n).map(Some) } else { Ok(None) }
        };
        Ok(Layer {
            attn_norm: norm(Part::AttnNorm, c.dim)?,
            q_proj: self.linear(l, Proj::Q, c.q_dim(), c.dim)?,
            k_proj: self.linear(l, Proj::K, c.kv_dim(), c.dim)?,
            v_proj: self.linear(l, Proj::V, c.kv_dim(), c.dim)?,
            q_norm: norm_of(Part::QNorm, c.head_dim, Architecture::Qwen3)?,
            k_norm: norm_of(Part::KNorm, c.head_dim, Architecture::Qwen3)?,
            attn_sub_norm: norm_of(Part::AttnSubNorm, c.q_dim(), Architecture::BitNet)?,
            o_proj: self.linear(l, Proj::O, c.dim, c.q_dim())?,
            ffn_norm: norm(Part::FfnNorm, c.dim)?,
            gate_proj: self.linear(l, Proj::Gate, c.ffn_dim, c.dim)?,
            up_proj: self.linear(l, Proj::Up, c.ffn_dim, c.dim)?,
            ffn_sub_norm: norm_of(Part::FfnSubNorm, c.ffn_dim, Architecture::BitNet)?,
            down_proj: self.linear(l, Proj::Down, c.dim, c.ffn_dim)?,
        })
    }

    fn norm(&self, role: Role, n: usize, eps: f32) -> Result<Norm> {
        let stored = self.source.tensor(role)?.ok_or_else(|| self.missing(role))?;
        self.check_shape(&stored, 1, n)?;
        let StoredData::Dense(format, bytes) = &stored.data else {
            return Err(self.bad(&stored, "is ternary, but norms are not").into());
        };
        let dtype = match format {
            DenseFormat::F32 => BitNetDType::F32,
            DenseFormat::F16 => BitNetDType::F16,
            DenseFormat::BF16 => BitNetDType::BF16,
            other => {
                return Err(self.bad(&stored, format!("is {other}, but norms are f32, f16 or bf16")).into());
            }
        };
        let tensor = BitNetTensor::from_file(bytes.clone(), &[n], dtype)?;
        let weight = self.engine.convert(&tensor, self.precision.precision(ComponentType::Norm))?;
        Ok(Norm { weight: self.aligned(weight)?, eps })
    }

    /// A file may have its tensors at any address; slices of floats may not.
    fn aligned(&self, tensor: BitNetTensor) -> Result<BitNetTensor> {
        if tensor.as_bytes().as_ptr().addr().is_multiple_of(align_of::<f32>()) {
            return Ok(tensor);
        }
        let mut copy = self.pool.allocate(tensor.size_bytes(), align_of::<f32>(), &tensor.device())?;
        copy.as_mut_slice().copy_from_slice(tensor.as_bytes());
        Ok(BitNetTensor::from_handle(copy, tensor.shape(), tensor.dtype())?)
    }

    fn dense(&self, role: Role) -> Result<Option<Dense>> {
        let Some(stored) = self.source.tensor(role)? else { return Ok(None) };
        self.check_shape(&stored, self.config.vocab_size, self.config.dim)?;
        match &stored.data {
            StoredData::Dense(format, bytes) => self.dense_matrix(&stored, *format, bytes).map(Some),
            _ => Err(self.bad(&stored, "is ternary, but embeddings and heads are not").into()),
        }
    }

    fn dense_matrix(&self, stored: &StoredTensor, format: DenseFormat, bytes: &Bytes) -> Result<Dense> {
        let (rows, cols) = (stored.rows, stored.cols);
        let size = format.row_bytes(cols).and_then(|row| row.checked_mul(rows));
        if size != Some(bytes.len()) {
            let problem =
                format!("has {} bytes, which is not {rows} rows of {cols} {format} values", bytes.len());
            return Err(self.bad(stored, problem).into());
        }
        Ok(Dense { bytes: bytes.clone(), format, rows, cols })
    }

    fn linear(&self, l: usize, proj: Proj, rows: usize, cols: usize) -> Result<Linear> {
        let role = Role::Layer(l, Part::Proj(proj));
        let stored = self.source.tensor(role)?.ok_or_else(|| self.missing(role))?;
        self.check_shape(&stored, rows, cols)?;
        let input_norm = match self.config.input_norm_eps {
            Some(eps) => Some(self.norm(Role::Layer(l, Part::InputNorm(proj)), cols, eps)?),
            None => None,
        };
        let matrix = match &stored.data {
            StoredData::Dense(format, bytes) => {
                if stored.row_order != RowOrder::Halves {
                    return Err(self
                        .bad(
                            &stored,
                            "is dense and has interleaved rows; convert the model again from its \
                        safetensors",
                        )
                        .into());
                }
                Matrix::Dense(self.dense_matrix(&stored, *format, bytes)?)
            }
            StoredData::Master(format, bytes) => {
                let dense = self.dense_matrix(&stored, *format, bytes)?;
                Matrix::BitLinear(self.quantize(&stored, &dense)?)
            }
            StoredData::Ternary { format: TernaryFormat::I2s(I2sLayout::Block128), bytes, scale }
                if stored.row_order == RowOrder::Halves =>
            {
                Matrix::BitLinear(self.map_i2_s(&stored, bytes, *scale)?)
            }
            StoredData::Ternary { format, bytes, scale } => {
                let ternary = self.unpack(&stored, *format, bytes, *scale)?;
                // Q2_0 is the format of a family without an activation quantiser.
                if *format == TernaryFormat::Q2_0 {
                    Matrix::TernaryF32(ternary)
                } else {
                    Matrix::BitLinear(ternary)
                }
            }
        };
        Ok(Linear { input_norm, matrix })
    }

    /// The kernels' own layout: the codes stay where the file is mapped.
    fn map_i2_s(&self, stored: &StoredTensor, bytes: &Bytes, scale: f32) -> Result<Ternary> {
        let (rows, cols) = (stored.rows, stored.cols);
        let format = TernaryFormat::I2s(I2sLayout::Block128);
        let min = format.min_size_bytes(rows, cols).map_err(|e| self.bad(stored, e.to_string()))?;
        let (Some(codes), Some(own_scale)) =
            (bytes.slice(0..rows * cols / 4), format.tensor_scale(bytes, rows, cols))
        else {
            return Err(self.bad(stored, format!("has {} bytes instead of {min}", bytes.len())).into());
        };
        if let Some(at) = i2_s::first_invalid_code(&codes) {
            let problem = format!(
                "has a code that is none of -1, 0, +1 in its byte {at}; if the file is not broken, try another --i2s-layout"
            );
            return Err(self.bad(stored, problem).into());
        }
        let codes = BitNetTensor::from_file(codes, &[rows, cols], BitNetDType::BitNet158)?;
        Ok(Ternary { codes, scales: OwnedScales::Tensor(own_scale * scale), rows, cols })
    }

    /// Any packing: rows are unpacked and packed again in the kernels' layout.
    fn unpack(
        &self,
        stored: &StoredTensor,
        format: TernaryFormat,
        bytes: &Bytes,
        scale: f32,
    ) -> Result<Ternary> {
        let (rows, cols) = (stored.rows, stored.cols);
        let blocks = format.block().map_or(0, |block| cols / block);
        let mut d = self.pool.buffer::<f32>(rows * blocks)?;
        let unpack_row = |r: usize, codes: &mut [u8], d: &mut [f32]| {
            let r = stored.row_order.file_row(r);
            format.unpack_rows(bytes, rows, cols, r..r + 1, codes, d)?;
            for (codes, d) in codes.chunks_mut(cols / blocks.max(1)).zip(d) {
                // Without weight, a block says nothing about the scale of the others.
                if *d == 0.0 {
                    codes.fill(1);
                }
            }
            Ok(())
        };
        let codes =
            self.pack_rows(rows, cols, blocks, &mut d, unpack_row).map_err(|e: PackRowsError| match e {
                PackRowsError::Pack(e) => self.bad(stored, e.to_string()).into(),
                PackRowsError::Memory(e) => crate::Error::from(e),
            })?;
        let uniform = uniform_scale(&d);
        let scales = match (format.block(), uniform) {
            (Some(_), Some(d)) => OwnedScales::Tensor(d * scale),
            (Some(block), None) => {
                d.iter_mut().for_each(|d| *d *= scale);
                OwnedScales::Blocks { d, block }
            }
            (None, _) => OwnedScales::Tensor(format.tensor_scale(bytes, rows, cols).unwrap_or(1.0) * scale),
        };
        Ok(Ternary { codes, scales, rows, cols })
    }

    /// Absmean quantisation of master weights (Ma et al., 2024): `s = 1 / max(mean|W|, 1e-5)`, scale `1 / s`.
    fn quantize(&self, stored: &StoredTensor, dense: &Dense) -> Result<Ternary> {
        let (rows, cols) = (dense.rows, dense.cols);
        let view = dense.view();
        let mut mean = MeanAbs::default();
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            view.row(r, &mut row);
            mean.push(&row);
        }
        let mean = mean.finish();
        if !mean.is_finite() {
            return Err(self
                .bad(stored, "holds an infinity or NaN, or values too large for their mean")
                .into());
        }
        let s = weight_factor(mean);
        let code_row = |r: usize, codes: &mut [u8], _: &mut [f32]| {
            let mut row = vec![0.0; cols];
            view.row(r, &mut row);
            for (code, w) in codes.iter_mut().zip(row) {
                *code = weight_code(w, s);
            }
            Ok(())
        };
        let codes = self.pack_rows(rows, cols, 0, &mut [], code_row).map_err(|e| match e {
            PackRowsError::Memory(e) => e,
            PackRowsError::Pack(e) => CoreError::Unavailable { reason: e.to_string() },
        })?;
        Ok(Ternary { codes, scales: OwnedScales::Tensor(1.0 / s), rows, cols })
    }

    /// Packs rows of codes, which `fill(row, codes, scales)` gives, on all threads.
    fn pack_rows(
        &self,
        rows: usize,
        cols: usize,
        blocks: usize,
        d: &mut [f32],
        fill: impl Fn(usize, &mut [u8], &mut [f32]) -> std::result::Result<(), bitnet_quant::packing::PackError>
        + Sync,
    ) -> std::result::Result<BitNetTensor, PackRowsError> {
        let row_bytes = layout::row_bytes(cols);
        let mut packed = self.pool.allocate(
            rows * row_bytes,
            bitnet_core::memory::ALIGNMENT,
            &bitnet_core::Device::Cpu,
        )?;
        let share = rows.div_ceil(self.n_threads).next_multiple_of(UNPACK_ROWS);
        let mut d_shares = d.chunks_mut((share * blocks).max(1));
        std::thread::scope(|scope| {
            let mut workers = Vec::new();
            for (i, packed) in packed.as_mut_slice().chunks_mut(share * row_bytes).enumerate() {
                let d = d_shares.next().unwrap_or_default();
                let fill = &fill;
                workers.push(scope.spawn(move || {
                    let mut codes = vec![0; cols];
                    for (j, packed) in packed.chunks_exact_mut(row_bytes).enumerate() {
                        fill(i * share + j, &mut codes, &mut d[j * blocks..(j + 1) * blocks])?;
                        layout::pack_row(&codes, packed);
                    }
                    Ok(())
                }));
            }
            for worker in workers {
                match worker.join() {
                    Ok(result) => result.map_err(PackRowsError::Pack)?,
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok::<(), PackRowsError>(())
        })?;
        Ok(BitNetTensor::from_handle(packed, &[rows, layout::padded_cols(cols)], BitNetDType::BitNet158)?)
    }

    fn check_shape(&self, stored: &StoredTensor, rows: usize, cols: usize) -> Result<()> {
        if (stored.rows, stored.cols) == (rows, cols) {
            return Ok(());
        }
        let problem = format!(
            "has the shape [{}, {}], but the configuration calls for [{rows}, {cols}]",
            stored.rows, stored.cols
        );
        Err(self.bad(stored, problem).into())
    }

    fn bad(&self, stored: &StoredTensor, problem: impl Into<String>) -> CoreError {
        CoreError::bad_tensor(self.source.path(), &stored.name, problem)
    }

    fn missing(&self, role: Role) -> crate::Error {
        let name = match self.source.format_name() {
            "gguf" => role.gguf_name(),
            _ => role.hf_names(self.config.architecture).first().cloned().unwrap_or_default(),
        };
        CoreError::MissingTensor { path: self.source.path().into(), name: format!("{name}.weight") }.into()
    }
}

enum PackRowsError {
    Pack(bitnet_quant::packing::PackError),
    Memory(CoreError),
}

impl From<CoreError> for PackRowsError {
    fn from(e: CoreError) -> Self {
        PackRowsError::Memory(e)
    }
}

/// The scale that all blocks share, those without weight aside.
fn uniform_scale(d: &[f32]) -> Option<f32> {
    let mut with_weight = d.iter().copied().filter(|d| *d != 0.0);
    let Some(first) = with_weight.next() else { return d.first().copied() };
    with_weight.all(|d| d == first).then_some(first)
}
