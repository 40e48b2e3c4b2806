//! What tells a model from others, whatever file it is from and however its weights lie in memory: a session belongs to the
//! numbers that computed it.

use bitnet_core::tensor::Random;
use bitnet_quant::layout::{Codes, Scales, TernaryView, code, row_bytes, tiles};
use bitnet_quant::linear::DenseView;
use bitnet_quant::rows::NormWeights;

use crate::model::Model;
use crate::source::Proj;
use crate::weights::{Matrix, Norm};

/// Rows of each matrix that are looked at, from the first to the last.
const ROWS: usize = 4;

impl Model {
    /// A number that two models share when their configurations, their norms and samples of all their matrices are equal
    /// as they are computed with. Conversions that change no logits do not change it, precisions and training do.
    pub fn fingerprint(&self) -> u64 {
        *self.inner.fingerprint.get_or_init(|| {
            let mut print = Fingerprint(0);
            print.config(self);
            print.weights(self);
            print.0
        })
    }
}

struct Fingerprint(u64);

impl Fingerprint {
    fn config(&mut self, model: &Model) {
        let c = model.config();
        self.text(c.architecture.name());
        self.text(&format!("{:?}", c.activation));
        let sizes = [c.dim, c.ffn_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.vocab_size];
        sizes.iter().for_each(|n| self.add(*n as u64));
        self.floats(&[c.norm_eps, c.input_norm_eps.unwrap_or(-1.0)]);
        self.floats(&model.inner.weights.inverse_frequencies);
    }

    fn weights(&mut self, model: &Model) {
        let weights = &model.inner.weights;
        self.dense(&weights.embedding.view());
        weights.head.iter().for_each(|head| self.dense(&head.view()));
        self.norm(&weights.output_norm);
        for layer in &weights.layers {
            let optional = [&layer.q_norm, &layer.k_norm, &layer.attn_sub_norm, &layer.ffn_sub_norm];
            let norms = [&layer.attn_norm, &layer.ffn_norm].into_iter().chain(optional.into_iter().flatten());
            norms.for_each(|norm| self.norm(norm));
            for linear in Proj::ALL.map(|proj| layer.projection(proj)) {
                linear.input_norm.iter().for_each(|norm| self.norm(norm));
                match &linear.matrix {
                    Matrix::BitLinear(w) | Matrix::TernaryF32(w) => self.ternary(&w.view()),
                    Matrix::Dense(w) => self.dense(&w.view()),
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

    fn dense(&mut self, view: &DenseView<'_>) {
        let mut row = vec![0.0; view.cols()];
        for r in sampled(view.rows()) {
            view.row(r, &mut row);
            self.floats(&row);
        }
    }

    fn ternary(&mut self, view: &TernaryView<'_>) {
        let (rows, cols) = (view.rows(), view.cols());
        for r in sampled(rows) {
            match view.codes() {
                Codes::Rows(codes) => {
                    let row = &codes[r * row_bytes(cols)..][..row_bytes(cols)];
                    self.codes(cols, |c| code(row, c));
                }
                Codes::Tiles(codes) => self.codes(cols, |c| tiles::tile_code(codes, cols, r, c)),
            }
        }
        match view.scales() {
            Scales::Tensor(scale) => self.floats(&[scale]),
            Scales::Blocks { d, .. } => self.floats(d),
        }
    }

    fn codes(&mut self, cols: usize, code: impl Fn(usize) -> u8) {
        for first in (0..cols).step_by(32) {
            let word = (first..cols.min(first + 32)).fold(0, |word, c| word << 2 | u64::from(code(c)));
            self.add(word);
        }
    }

    fn text(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.add(u64::from(byte)));
    }

    fn floats(&mut self, values: &[f32]) {
        values.iter().for_each(|x| self.add(u64::from(x.to_bits())));
    }

    fn add(&mut self, word: u64) {
        self.0 = Random::mix(self.0.rotate_left(1) ^ word);
    }
}

/// Some rows of `rows`, the first and the last among them.
fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    let n = rows.min(ROWS);
    (0..n).map(move |i| if n < 2 { i } else { i * (rows - 1) / (n - 1) })
}
