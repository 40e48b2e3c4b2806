//! Devices: which there are, what they can do, and which is taken.

mod comparison;
mod system;

use std::fmt;
use std::str::FromStr;

use bitnet_quant::kernels::Kernels;

use crate::{Error, Result};

pub use comparison::{DeviceReport, compare_devices};

/// Memory that a measurement reads: far more than caches hold.
const PROBE_BYTES: usize = 1 << 30;

/// Where tensors live and operations run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Device {
    /// The processor and main memory.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU through Metal.
    Metal,
    /// A GPU through WebGPU.
    Wgpu,
    /// Apple's MLX.
    Mlx,
}

impl Device {
    /// Every device, the most general first.
    pub const ALL: [Device; 5] = [Device::Cpu, Device::Cuda, Device::Metal, Device::Wgpu, Device::Mlx];

    /// The name that `--device` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
            Device::Metal => "metal",
            Device::Wgpu => "wgpu",
            Device::Mlx => "mlx",
        }
    }

    /// Whether this build can use the device on this machine; the error says what is missing.
    pub fn check(self) -> Result<()> {
        let name = self.name();
        let compiled = match self {
            Device::Cpu => return Ok(()),
            Device::Cuda => cfg!(feature = "cuda"),
            Device::Metal => cfg!(feature = "metal"),
            Device::Mlx => cfg!(feature = "mlx"),
            Device::Wgpu => false,
        };
        Err(match compiled {
            false => Error::NotCompiled { feature: name },
            // What the feature calls for has no code in this version.
            true => Error::Unavailable { what: name, reason: "this version has no such backend yet".into() },
        })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Device {
    type Err = String;

    /// `auto` is [`auto_select_device`].
    fn from_str(s: &str) -> std::result::Result<Self, String> {
        if s == "auto" {
            return Ok(auto_select_device());
        }
        let names = || Device::ALL.map(Device::name).join(", ");
        Device::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| format!("devices are auto, {}", names()))
    }
}

/// The best device that this build can use on this machine.
pub fn auto_select_device() -> Device {
    Device::ALL.into_iter().rfind(|d| d.check().is_ok()).unwrap_or(Device::Cpu)
}

/// The processor.
pub fn get_cpu_device() -> Device {
    Device::Cpu
}

/// Whether the processor and whether Metal can be used.
pub fn get_device_info() -> (bool, bool) {
    (Device::Cpu.check().is_ok(), Device::Metal.check().is_ok())
}

/// What the processor offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuCapabilities {
    /// The processor's own name, where the system tells it.
    pub name: Option<String>,
    /// Hardware threads that this process may use, by its affinity and the quota of its control group.
    pub n_threads: usize,
    /// Cores that those threads are on, where the system tells it.
    pub n_cores: Option<usize>,
    /// Kernel tables that it can run, the slowest first.
    pub kernels: Vec<&'static str>,
    /// The largest cache in bytes, where the system tells it.
    pub cache_bytes: Option<u64>,
    /// Main memory in bytes, or what the control group allows of it, where the system tells it.
    pub memory_bytes: Option<u64>,
    /// Of that, what is not in use, where the system tells it.
    pub available_bytes: Option<u64>,
}

impl CpuCapabilities {
    /// Asks the processor and the system.
    pub fn detect() -> Self {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        CpuCapabilities {
            name: system::processor_name(),
            n_threads,
            // A quota allows fewer threads than there are cores, and says nothing of which.
            n_cores: system::n_cores().map(|cores| cores.min(n_threads)),
            kernels: Kernels::available().iter().map(|k| k.name()).collect(),
            cache_bytes: system::cache_bytes(),
            memory_bytes: system::memory_bytes(),
            available_bytes: system::available_bytes(),
        }
    }

    /// What measurements on this processor hold for: its model and revision, what it can run, its cache and the number of
    /// its threads. Another machine of the same name may have others.
    pub fn identity(&self) -> String {
        let CpuCapabilities { name, n_threads, n_cores, kernels, cache_bytes, .. } = self;
        let known = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        // Which of two tables is the faster is itself a measurement.
        let mut kernels = kernels.clone();
        kernels.sort_unstable();
        format!(
            "{} ({}); {n_threads} threads of {} cores; {} bytes of cache; {}",
            name.as_deref().unwrap_or(std::env::consts::ARCH),
            system::processor_revision().unwrap_or_default(),
            known(n_cores.map(|n| n as u64)),
            known(*cache_bytes),
            kernels.join(" ")
        )
    }
}

/// Main memory that is in use, or what the control group allows of it, in percent, where the system tells it.
pub fn memory_usage_percent() -> Option<f64> {
    let all = system::memory_bytes().filter(|bytes| *bytes > 0)?;
    Some(100.0 * (1.0 - system::available_bytes()? as f64 / all as f64))
}

/// Memory that measurements of reading take: a GiB, or half of what is free where that is less.
pub fn probe_bytes() -> usize {
    let half = system::available_bytes().map_or(u64::MAX, |bytes| bytes / 2);
    PROBE_BYTES.min(usize::try_from(half).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_absent_backends_say_what_to_do() {
        assert_eq!("auto".parse(), Ok(Device::Cpu));
        for d in Device::ALL {
            assert_eq!(d.name().parse(), Ok(d));
        }
        assert!("gpu".parse::<Device>().unwrap_err().contains("metal"));
        let message = Device::Cuda.check().unwrap_err().to_string();
        assert!(message.contains("--device cpu") && message.contains("cuda"), "{message}");
        assert_eq!((auto_select_device(), get_device_info()), (Device::Cpu, (true, false)));
    }

    #[test]
    fn a_feature_without_a_backend_claims_no_device() {
        for (device, on) in [
            (Device::Cuda, cfg!(feature = "cuda")),
            (Device::Metal, cfg!(feature = "metal")),
            (Device::Mlx, cfg!(feature = "mlx")),
        ] {
            let error = device.check().unwrap_err();
            assert_eq!(matches!(error, Error::Unavailable { .. }), on, "{error}");
            assert_eq!(matches!(error, Error::NotCompiled { .. }), !on, "{error}");
        }
    }

    #[test]
    fn the_processor_describes_itself() {
        let cpu = CpuCapabilities::detect();
        assert!(cpu.n_threads >= 1);
        assert_eq!(cpu.kernels[0], "scalar");
        if cfg!(target_os = "linux") {
            let (memory, free) = (cpu.memory_bytes.unwrap(), cpu.available_bytes.unwrap());
            assert!(memory > 1 << 20 && free <= memory && probe_bytes() as u64 <= free.max(1));
            assert!(cpu.n_cores.is_none_or(|cores| (1..=cpu.n_threads).contains(&cores)));
            assert!((0.0..=100.0).contains(&memory_usage_percent().unwrap()));
        }
    }

    #[test]
    fn machines_of_one_name_are_told_apart() {
        let this = CpuCapabilities::detect();
        let mut others = vec![this.clone(); 4];
        others[0].n_threads += 1;
        others[1].n_cores = Some(1 + this.n_cores.unwrap_or(0));
        others[2].cache_bytes = Some(1);
        others[3].kernels.push("another");
        assert!(others.iter().all(|other| other.identity() != this.identity()));
        // Memory in use is no property of the machine.
        assert_eq!(CpuCapabilities { available_bytes: None, ..this.clone() }.identity(), this.identity());
        // Nor is the order of tables that are about equally fast.
        let kernels = this.kernels.iter().rev().copied().collect();
        assert_eq!(CpuCapabilities { kernels, ..this.clone() }.identity(), this.identity());
    }
}
