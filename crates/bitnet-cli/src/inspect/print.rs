//! The description for people.

use std::io::{self, Write};

use serde_json::Value;

use super::listing::{Listing, Metadata};
use super::summary::{ModelSummary, Summary, activation_name, scaling_name};

/// Characters of a metadata value that are shown.
const VALUE_CHARS: usize = 60;
/// Names of unused tensors that are shown.
const MAX_UNUSED: usize = 8;

/// File, types and metadata.
pub(super) fn listing(out: &mut impl Write, listing: &Listing) -> io::Result<()> {
    row(out, "file", listing.path.display())?;
    row(out, "format", &listing.format)?;
    for (dtype, count) in listing.types() {
        let of = match count.unpacked_bytes {
            0 => String::new(),
            n => format!(" of {} ({:.1} %)", size(n), count.bytes as f64 / n as f64 * 100.0),
        };
        row(out, "tensors", format_args!("{:>5} {dtype}, {}{of}", count.tensors, size(count.bytes)))?;
    }
    for (key, value) in &listing.metadata {
        writeln!(out, "  {} = {}", key.escape_debug(), short(value))?;
    }
    Ok(())
}

/// What the engine makes of it.
pub(super) fn summary(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    if let Some(m) = &summary.model {
        model(out, m)?;
    }
    if let Some(text) = &summary.text {
        row(out, "vocabulary", text.vocab_size)?;
        row(out, "chat template", text.chat_template.unwrap_or("none"))?;
        let tokens: Vec<String> = text.end_tokens.iter().map(|(id, token)| format!("{id} {token}")).collect();
        row(out, "end tokens", tokens.join(", "))?;
    }
    for problem in &summary.problems {
        row(out, "problem", problem)?;
    }
    Ok(())
}

/// Every tensor.
pub(super) fn tensors(out: &mut impl Write, listing: &Listing) -> io::Result<()> {
    for t in &listing.tensors {
        let bytes = t.bytes.map_or_else(|| "unknown size".to_owned(), size);
        writeln!(out, "  {:<48} {:<8} {:?} {bytes}", t.name.escape_debug().to_string(), t.dtype, t.shape)?;
    }
    Ok(())
}

fn model(out: &mut impl Write, m: &ModelSummary) -> io::Result<()> {
    let c = &m.config;
    row(out, "architecture", format_args!("{}, {}", m.architecture, activation_name(c.activation)))?;
    row(
        out,
        "shape",
        format_args!(
            "{} layers, dim {}, ffn_dim {}, {} heads of {} ({} for keys and values)",
            c.n_layers, c.dim, c.ffn_dim, c.n_heads, c.head_dim, c.n_kv_heads
        ),
    )?;
    row(
        out,
        "context",
        format_args!(
            "{} tokens, rope theta {}, scaling {}",
            c.max_seq_len,
            c.rope_theta,
            scaling_name(&c.rope_scaling)
        ),
    )?;
    row(
        out,
        "parameters",
        format_args!("{} ternary, {} other", count(m.ternary_parameters), count(m.other_parameters)),
    )?;
    let b = &m.bytes;
    let kinds = [
        ("ternary", b.ternary),
        ("embedding", b.embedding),
        ("head", b.head),
        ("norms", b.norms),
        ("other", b.other),
    ];
    let kinds: Vec<String> = kinds
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(kind, bytes)| format!("{kind} {}", size(*bytes)))
        .collect();
    row(out, "bytes", kinds.join(", "))?;
    let memory = &m.memory;
    row(
        out,
        "memory",
        format_args!(
            "{} for {} tokens: weights {}, derived head {}, f16 KV cache {}, activations {}",
            size(memory.total()),
            memory.context,
            size(memory.weights),
            size(memory.derived_head),
            size(memory.kv_f16),
            size(memory.activations)
        ),
    )?;
    if !m.unused_tensors.is_empty() {
        let shown = &m.unused_tensors[..m.unused_tensors.len().min(MAX_UNUSED)];
        row(
            out,
            "unused",
            format_args!("{} tensors: {}", m.unused_tensors.len(), shown.join(", ").escape_debug()),
        )?;
    }
    Ok(())
}

fn row(out: &mut impl Write, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "{name:<14} {value}")
}

fn short(value: &Metadata) -> String {
    match value {
        Metadata::Array { item_type, len } => format!("[{len} × {item_type}]"),
        Metadata::Scalar(Value::String(text)) => {
            // Escaped, because a file may have anything in its strings, also what a terminal obeys.
            let cut = if text.chars().nth(VALUE_CHARS).is_some() { "…" } else { "" };
            format!("{:?}{cut}", text.chars().take(VALUE_CHARS).collect::<String>())
        }
        Metadata::Scalar(other) => other.to_string(),
    }
}

fn size(bytes: usize) -> String {
    let mut value = bytes as f64;
    for unit in ["bytes", "KiB", "MiB"] {
        if value < 1024.0 {
            return if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.2} GiB")
}

fn count(n: usize) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_have_units() {
        assert_eq!(
            [0, 1023, 1024, 5 << 20, 3 << 30].map(size),
            ["0 bytes", "1023 bytes", "1.0 KiB", "5.0 MiB", "3.00 GiB"]
        );
        assert_eq!([999_999, 2_400_000, 2_410_000_000].map(count), ["999999", "2.4 M", "2.41 B"]);
    }

    #[test]
    fn strings_of_a_file_cannot_steer_the_terminal() {
        let value = Metadata::Scalar(Value::String("\u{1b}[31m".into()));
        assert_eq!(short(&value), "\"\\u{1b}[31m\"");
    }
}
