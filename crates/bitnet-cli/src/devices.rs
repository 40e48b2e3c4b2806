//! `bitnet devices`: what this machine can compute on, how fast it was measured to be, and what is missing elsewhere.

use std::io::{self, Write};

use bitnet_core::device::{CpuCapabilities, Device, DeviceReport, auto_select_device, compare_devices};
use bitnet_core::execution::{ExecutionBackend, ExecutionPlan, ExecutionRequest, Performance, Timings};
use bitnet_core::file::CacheDir;
use clap::Args;
use serde_json::{Value, json};

/// List devices and backends with what they were measured to do.
#[derive(Debug, Args)]
#[command(after_help = "\
    The read bandwidth is the best of several ways to read up to 1 GiB; the int8 rate is that of the instructions alone. \
    Backends are measured with the engine's own ternary products, once: the numbers are kept in the cache folder.\n\n\
    Examples:\n  \
    bitnet devices\n  \
    bitnet devices --json")]
pub(crate) struct DevicesArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn devices(args: &DevicesArgs) -> anyhow::Result<()> {
    let cpu = CpuCapabilities::detect();
    let devices = compare_devices();
    let backends = Backend::all()?;
    let mut stdout = io::stdout().lock();
    if args.json {
        let object = json!({
            "selected": auto_select_device().name(),
            "devices": devices.iter().map(|device| device_json(device, &cpu)).collect::<Vec<_>>(),
            "backends": backends.iter().map(Backend::to_json).collect::<Vec<_>>(),
        });
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    for device in &devices {
        print_device(&mut stdout, device, &cpu)?;
    }
    writeln!(stdout, "\nbackends by priority")?;
    backends.iter().try_for_each(|backend| backend.print(&mut stdout))?;
    Ok(())
}

fn device_json(report: &DeviceReport, cpu: &CpuCapabilities) -> Value {
    let mut object = json!({ "device": report.device.name(), "available": report.limits.is_ok() });
    match &report.limits {
        Ok(limits) => {
            object["read_gb_s"] = json!(limits.read_gb_s);
            object["int8_gop_s"] = json!(limits.int8_gop_s);
        }
        Err(error) => object["missing"] = json!(error.to_string()),
    }
    if report.device == Device::Cpu {
        object["name"] = json!(cpu.name);
        object["threads"] = json!(cpu.n_threads);
        object["cores"] = json!(cpu.n_cores);
        object["kernels"] = json!(cpu.kernels);
        object["cache_bytes"] = json!(cpu.cache_bytes);
        object["memory_bytes"] = json!(cpu.memory_bytes);
        object["available_bytes"] = json!(cpu.available_bytes);
    }
    object
}

fn print_device(out: &mut impl Write, report: &DeviceReport, cpu: &CpuCapabilities) -> io::Result<()> {
    let limits = match &report.limits {
        Ok(limits) => limits,
        Err(error) => return writeln!(out, "{:<6} not here: {error}", report.device.name()),
    };
    write!(out, "{:<6}", report.device.name())?;
    if report.device == Device::Cpu {
        let known = |bytes: Option<u64>, unit: f64| {
            bytes.map_or("unknown".into(), |bytes| format!("{:.1}", bytes as f64 / unit))
        };
        writeln!(out, " {}", cpu.name.as_deref().unwrap_or("unnamed processor"))?;
        let cores = cpu.n_cores.map_or("unknown".into(), |n| n.to_string());
        writeln!(out, "       threads {}, cores {cores}, kernels {}", cpu.n_threads, cpu.kernels.join(" "))?;
        writeln!(
            out,
            "       memory {} GB, free {} GB, largest cache {} MB",
            known(cpu.memory_bytes, 1e9),
            known(cpu.available_bytes, 1e9),
            known(cpu.cache_bytes, 1e6)
        )?;
        write!(out, "      ")?;
    }
    writeln!(
        out,
        " reads memory at {:.2} GB/s, multiplies int8 at {:.1} GOP/s",
        limits.read_gb_s, limits.int8_gop_s
    )
}

/// A backend as it was found.
struct Backend {
    backend: ExecutionBackend,
    /// The kernels and what they were measured to do, or what is missing.
    measured: Result<(&'static str, Performance), bitnet_core::Error>,
}

impl Backend {
    fn all() -> anyhow::Result<Vec<Backend>> {
        let plan = ExecutionPlan::new(&ExecutionRequest::default(), None)?;
        let mut timings = Timings::read(CacheDir::of_user().as_ref());
        let mut measure = |backend: ExecutionBackend| {
            let kernels = backend.kernels()?;
            let performance = Performance::measure(backend, kernels, plan.threads(), &mut timings);
            Ok((kernels.name(), performance))
        };
        let backends = ExecutionBackend::ALL.into_iter();
        let backends = backends.map(|backend| Backend { backend, measured: measure(backend) }).collect();
        if let Some(notice) = timings.notice() {
            say!("note: {notice}");
        }
        Ok(backends)
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "backend": self.backend.name(),
            "priority": self.backend.priority(),
            "available": self.measured.is_ok(),
        });
        match &self.measured {
            Ok((kernels, performance)) => {
                object["kernels"] = json!(kernels);
                object["latency_s"] = json!(performance.latency_s);
                object["read_gb_s"] = json!(performance.read_gb_s);
                object["gop_s"] = json!(performance.gop_s);
                object["gop_per_joule"] = json!(performance.gop_per_joule);
            }
            Err(error) => object["missing"] = json!(error.to_string()),
        }
        object
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        write!(out, "{:>6} {:<6}", self.backend.priority(), self.backend.name())?;
        match &self.measured {
            Err(error) => writeln!(out, " not here: {error}"),
            Ok((kernels, performance)) => {
                let energy = match performance.gop_per_joule {
                    Some(rate) => format!("{rate:.1} GOP a joule"),
                    None => "energy unknown: no counter that may be read".into(),
                };
                writeln!(
                    out,
                    " {kernels}: weights at {:.2} GB/s, products at {:.1} GOP/s, {:.1} µs at least, {energy}",
                    performance.read_gb_s,
                    performance.gop_s,
                    performance.latency_s * 1e6
                )
            }
        }
    }
}
