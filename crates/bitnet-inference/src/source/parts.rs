//! The tensors of a decoder by their role, and what each file format calls them.

use crate::config::{Architecture, ModelConfig};

/// A tensor's role in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embeddings: (vocab_size, dim).
    Embedding,
    /// The norm behind the last layer: (dim).
    OutputNorm,
    /// The head, where it is not the embedding: (vocab_size, dim).
    Head,
    /// A tensor of a layer.
    Layer(usize, Part),
}

/// A tensor's role in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The norm before attention: (dim).
    AttnNorm,
    /// The norm of each query head: (head_dim).
    QNorm,
    /// The norm of each key head: (head_dim).
    KNorm,
    /// The norm before `o_proj`: (n_heads * head_dim).
    AttnSubNorm,
    /// The norm before the feed-forward network: (dim).
    FfnNorm,
    /// The norm before `down_proj`: (ffn_dim).
    FfnSubNorm,
    /// A projection.
    Proj(Proj),
    /// The norm before the quantiser of a projection: (its columns).
    InputNorm(Proj),
}

/// A projection of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the field")]
pub enum Proj {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Proj {
    /// Every projection, in the order of the forward pass.
    pub const ALL: [Proj; 7] = [Proj::Q, Proj::K, Proj::V, Proj::O, Proj::Gate, Proj::Up, Proj::Down];

    fn shape(self, c: &ModelConfig) -> (usize, usize) {
        match self {
            Proj::Q => (c.q_dim(), c.dim),
            Proj::K | Proj::V => (c.kv_dim(), c.dim),
            Proj::O => (c.dim, c.q_dim()),
            Proj::Gate | Proj::Up => (c.ffn_dim, c.dim),
            Proj::Down => (c.dim, c.ffn_dim),
        }
    }

    pub(crate) const fn gguf(self) -> &'static str {
        match self {
            Proj::Q => "attn_q",
            Proj::K => "attn_k",
            Proj::V => "attn_v",
            Proj::O => "attn_output",
            Proj::Gate => "ffn_gate",
            Proj::Up => "ffn_up",
            Proj::Down => "ffn_down",
        }
    }

    const fn hf(self) -> &'static str {
        match self {
            Proj::Q => "self_attn.q_proj",
            Proj::K => "self_attn.k_proj",
            Proj::V => "self_attn.v_proj",
            Proj::O => "self_attn.o_proj",
            Proj::Gate => "mlp.gate_proj",
            Proj::Up => "mlp.up_proj",
            Proj::Down => "mlp.down_proj",
        }
    }
}

impl Role {
    /// Every role that a model of `n_layers` layers can have.
    pub fn all(n_layers: usize) -> Vec<Role> {
        let norms =
            [Part::AttnNorm, Part::QNorm, Part::KNorm, Part::AttnSubNorm, Part::FfnNorm, Part::FfnSubNorm];
        let projections = Proj::ALL.into_iter().flat_map(|p| [Part::Proj(p), Part::InputNorm(p)]);
        let parts: Vec<Part> = norms.into_iter().chain(projections).collect();
        let layers = (0..n_layers).flat_map(|l| parts.iter().map(move |p| Role::Layer(l, *p)));
        [Role::Embedding, Role::OutputNorm, Role::Head].into_iter().chain(layers).collect()
    }

    /// Rows and columns of the tensor; `None` where models of the configuration have none of the role. The head may
    /// be absent all the same.
    pub(crate) fn shape(self, config: &ModelConfig) -> Option<(usize, usize)> {
        let c = config;
        let part = match self {
            Role::Embedding | Role::Head => return Some((c.vocab_size, c.dim)),
            Role::OutputNorm => return Some((1, c.dim)),
            Role::Layer(_, part) => part,
        };
        match part {
            Part::AttnNorm | Part::FfnNorm => Some((1, c.dim)),
            Part::QNorm | Part::KNorm => (c.architecture == Architecture::Qwen3).then_some((1, c.head_dim)),
            Part::AttnSubNorm => (c.architecture == Architecture::BitNet).then_some((1, c.q_dim())),
            Part::FfnSubNorm => (c.architecture == Architecture::BitNet).then_some((1, c.ffn_dim)),
            Part::Proj(p) => Some(p.shape(c)),
            Part::InputNorm(p) => c.input_norm_eps.map(|_| (1, p.shape(c).1)),
        }
    }

    /// The name in a GGUF file, without `.weight`.
    pub fn gguf_name(self) -> String {
        let (layer, part) = match self {
            Role::Embedding => return "token_embd".into(),
            Role::OutputNorm => return "output_norm".into(),
            Role::Head => return "output".into(),
            Role::Layer(layer, part) => (layer, part),
        };
        let part = match part {
            Part::AttnNorm => "attn_norm",
            Part::QNorm => "attn_q_norm",
            Part::KNorm => "attn_k_norm",
            Part::AttnSubNorm => "attn_sub_norm",
            Part::FfnNorm => "ffn_norm",
            Part::FfnSubNorm => "ffn_sub_norm",
            Part::Proj(p) => p.gguf(),
            Part::InputNorm(p) => return format!("blk.{layer}.{}_norm_in", p.gguf()),
        };
        format!("blk.{layer}.{part}")
    }

    /// The names in a Hugging Face checkpoint, without `.weight`, the usual one first.
    pub fn hf_names(self, architecture: Architecture) -> Vec<String> {
        let (layer, part) = match self {
            Role::Embedding => return vec!["model.embed_tokens".into()],
            Role::OutputNorm => return vec!["model.norm".into()],
            Role::Head => return vec!["lm_head".into()],
            Role::Layer(layer, part) => (layer, part),
        };
        let in_proj = |p: Proj| [format!("{}.rms_norm", p.hf()), format!("{}.norm", p.hf())];
        let own: Vec<String> = match part {
            Part::AttnNorm => vec!["input_layernorm".into()],
            Part::QNorm => vec!["self_attn.q_norm".into()],
            Part::KNorm => vec!["self_attn.k_norm".into()],
            Part::FfnNorm => vec!["post_attention_layernorm".into()],
            Part::AttnSubNorm if architecture == Architecture::BitNet => {
                vec!["self_attn.attn_sub_norm".into(), "self_attn.inner_attn_ln".into()]
            }
            Part::FfnSubNorm if architecture == Architecture::BitNet => {
                vec!["mlp.ffn_sub_norm".into(), "mlp.ffn_layernorm".into()]
            }
            Part::AttnSubNorm | Part::FfnSubNorm => Vec::new(),
            Part::Proj(p) => vec![p.hf().into()],
            Part::InputNorm(p) => in_proj(p).into(),
        };
        own.into_iter().map(|name| format!("model.layers.{layer}.{name}")).collect()
    }
}
