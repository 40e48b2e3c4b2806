//! What tells a model from others, whatever file it is from and however its ternary weights lie in memory: a session belongs
//! to the numbers that computed it.
//!
//! Every weight counts. Bytes of dense matrices have a checksum a row. Ternary weights lie in several layouts, so that their
//! bytes say nothing; instead, the kernels multiply them by two fixed vectors, which gives exact whole numbers, the same in
//! every layout, at the speed at which a token is computed.

use bitnet_core::tensor::Random;
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::layout::{Codes, Scales, TernaryView};
use bitnet_quant::linear::{QuantizedRows, bitlinear};
use bitnet_quant::rows::NormWeights;

use crate::model::Model;
use crate::source::Proj;
use crate::weights::{Dense, Matrix, Norm};

/// Vectors that ternary matrices are multiplied by: of two rows that differ, one in millions has equal products with both.
const PROBES: usize = 2;
/// The largest element of a vector, which makes the quantiser leave the others as they are.
const MOST: f32 = 127.0;

impl Model {
    /// A number that two models share when their configurations and all their weights are equal as they are computed with,
    /// dense ones in the same format. Packings and layouts of ternary weights do not change it, precisions and training do.
    /// The first call reads all weights.
    pub fn fingerprint(&self) -> u64 {
        *self.inner.fingerprint.get_or_init(|| {
            let _env = DefaultFloatEnv::enter();
            let mut print = Fingerprint { model: self, hash: 0 };
            print.config();
            print.weights();
            print.hash
        })
    }
}

struct Fingerprint<'a> {
    model: &'a Model,
    hash: u64,
}

impl Fingerprint<'_> {
    fn config(&mut self) {
        let c = self.model.config();
        self.text(c.architecture.name());
        self.text(&format!("{:?}", c.activation));
        let sizes = [c.dim, c.ffn_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size];
        sizes.iter().for_each(|n| self.add(*n as u64));
        self.floats(&[c.norm_eps, c.input_norm_eps.unwrap_or(-1.0)]);
        self.floats(&self.model.inner.weights.inverse_frequencies);
    }

    fn weights(&mut self) {
        let weights = &self.model.inner.weights;
        self.dense(&weights.embedding);
        weights.head.iter().for_each(|head| self.dense(head));
        self.norm(&weights.output_norm);
        for layer in &weights.layers {
            let optional = [&layer.q_norm, &layer.k_norm, &layer.attn_sub_norm, &layer.ffn_sub_norm];
            let norms = [&layer.attn_norm, &layer.ffn_norm].into_iter().chain(optional.into_iter().flatten());
            norms.for_each(|norm| self.norm(norm));
            for linear in Proj::ALL.map(|proj| layer.projection(proj)) {
                linear.input_norm.iter().for_each(|norm| self.norm(norm));
                match &linear.matrix {
                    Matrix::BitLinear(w) => self.ternary("int8 activations", &w.view()),
                    Matrix::TernaryF32(w) => self.ternary("f32 activations", &w.view()),
                    Matrix::Dense(w) => self.dense(w),
                }
            }
        }
    }

    fn norm(&mut self, norm: &Norm) {
        match norm.weights() {
            NormWeights::F32(w) => self.floats(w),
            NormWeights::Narrow(format, bytes) => {
                let mut wide = vec![0.0; bytes.len() / format.block_bytes()];
                format.dequantize_row(bytes, &mut wide);
                self.floats(&wide);
            }
        }
    }

    fn dense(&mut self, matrix: &Dense) {
        let view = matrix.view();
        self.text(matrix.format().name());
        let row_bytes = matrix.bytes().len() / view.rows().max(1);
        for row in matrix.bytes().chunks_exact(row_bytes.max(1)) {
            self.add(u64::from(crc32fast::hash(row)));
        }
    }

    fn ternary(&mut self, activations: &str, view: &TernaryView<'_>) {
        self.text(activations);
        let (rows, cols) = (view.rows(), view.cols());
        // Scales are a matter of their own: without them products are whole numbers.
        let (unscaled, scales) = match (view.codes(), view.scales()) {
            (Codes::Tiles(codes), Scales::Tensor(scale)) => {
                (TernaryView::tiled(codes, rows, cols, 1.0), vec![scale])
            }
            (Codes::Rows(codes), Scales::Tensor(scale)) => {
                (TernaryView::new(codes, rows, cols, Scales::Tensor(1.0)), vec![scale])
            }
            (_, Scales::Blocks { d, .. }) => (*view, d.to_vec()),
        };
        self.floats(&scales);
        let mut random = Random::new(0, cols as u64);
        // None is 0, which would be blind to a column.
        let mut element = || (random.uniform() * (MOST - 1.0)).trunc();
        let mut probes: Vec<f32> =
            (0..PROBES * cols).map(|_| element()).map(|x| x + 1f32.copysign(x)).collect();
        probes.iter_mut().step_by(cols).for_each(|first| *first = MOST);

        let (mut codes, mut factors, mut sums) =
            (vec![0; QuantizedRows::codes_len(PROBES, cols)], [0.0; PROBES], [0; PROBES]);
        let mut x = QuantizedRows::new(&mut codes, &mut factors, &mut sums);
        let (kernels, threads) = (self.model.inner.kernels, &self.model.inner.threads);
        x.quantize(kernels, threads, &probes, cols).expect("the vectors are finite");
        let mut products = vec![0.0; PROBES * rows];
        bitlinear(kernels, threads, [&unscaled], &x, [&mut products]);
        self.floats(&products);
    }

    fn text(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.add(u64::from(byte)));
    }

    fn floats(&mut self, values: &[f32]) {
        values.iter().for_each(|x| self.add(u64::from(x.to_bits())));
    }

    fn add(&mut self, word: u64) {
        self.hash = Random::mix(self.hash.rotate_left(1) ^ word);
    }
}
