//! Configurations from strangers: whatever passes validation has numbers that fit one another.
//!
//! Bytes that begin with GGUF are a file whose metadata are read; all others are a `config.json`.

#![no_main]

use std::path::Path;

use bitnet_core::file::Mapping;
use bitnet_core::file::gguf::Gguf;
use bitnet_inference::config::{HfConfig, ModelConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if data.starts_with(b"GGUF") {
        let Ok(gguf) = Gguf::parse(Mapping::memory("fuzz", data.to_vec())) else { return };
        if let Ok(config) = ModelConfig::from_gguf(&gguf) {
            check(&config);
        }
    } else if let Ok(config) = HfConfig::from_json(data, Path::new("config.json")) {
        check(&config.model);
    }
});

/// What the loader and the decoder rely on.
fn check(config: &ModelConfig) {
    assert!(config.dim > 0 && config.ffn_dim > 0 && config.vocab_size > 0 && config.n_layers > 0);
    assert!(config.q_dim() >= config.kv_dim() && config.kv_dim() > 0);
    assert!(config.n_heads.is_multiple_of(config.n_kv_heads));
    assert_eq!(config.inverse_frequencies().len() * 2, config.head_dim);
}
