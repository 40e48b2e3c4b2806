//! Devices: which there are, what they can do, and which is taken.

use std::fmt;
use std::str::FromStr;

use bitnet_quant::kernels::Kernels;

use crate::{Error, Result};

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
        match self {
            Device::Cpu => Ok(()),
            device => Err(Error::NotCompiled { feature: device.name() }),
        }
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
    /// Hardware threads this process may use.
    pub n_threads: usize,
    /// Kernel tables that it can run, the plainest first.
    pub kernels: Vec<&'static str>,
    /// Main memory in bytes, where the system tells it.
    pub memory_bytes: Option<u64>,
}

impl CpuCapabilities {
    /// Asks the processor and the system.
    pub fn detect() -> Self {
        CpuCapabilities {
            name: proc_field("/proc/cpuinfo", "model name"),
            n_threads: std::thread::available_parallelism().map_or(1, usize::from),
            kernels: Kernels::available().iter().map(|k| k.name()).collect(),
            memory_bytes: proc_field("/proc/meminfo", "MemTotal")
                .and_then(|v| v.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)),
        }
    }
}

/// The value of the first line `key : value` of a file under /proc; `None` where there is no such file.
fn proc_field(path: &str, key: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (k, v) = line.split_once(':')?;
        (k.trim() == key).then(|| v.trim().to_owned())
    })
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
        assert_eq!(get_device_info(), (true, false));
    }

    #[test]
    fn the_processor_describes_itself() {
        let cpu = CpuCapabilities::detect();
        assert!(cpu.n_threads >= 1);
        assert_eq!(cpu.kernels[0], "scalar");
        if cfg!(target_os = "linux") {
            assert!(cpu.memory_bytes.unwrap() > 1 << 20);
        }
    }
}
