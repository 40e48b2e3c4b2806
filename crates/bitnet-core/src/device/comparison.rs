//! Every device side by side: what this machine can use and how fast it was measured to be, and what the others lack.

use bitnet_quant::limits::Limits;

use super::{Device, probe_bytes};
use crate::Error;
use crate::execution::{ExecutionPlan, ExecutionRequest};

/// One device as it was found.
#[derive(Debug)]
pub struct DeviceReport {
    /// The device.
    pub device: Device,
    /// What was measured, or why the device cannot be used.
    pub limits: Result<Limits, Error>,
}

impl DeviceReport {
    /// Measures `device`, which takes about a second and [`probe_bytes`] of memory, if it can be used.
    pub fn measure(device: Device) -> Self {
        let measured = || {
            device.check()?;
            let plan = ExecutionPlan::new(&ExecutionRequest::default(), None)?;
            Ok(Limits::measure(plan.kernels(), plan.threads(), probe_bytes()))
        };
        DeviceReport { device, limits: measured() }
    }
}

/// Every device: those that can be used first, the one that reads memory fastest before the others, because generating
/// text is reading weights.
pub fn compare_devices() -> Vec<DeviceReport> {
    let mut reports: Vec<_> = Device::ALL.into_iter().map(DeviceReport::measure).collect();
    sort(&mut reports);
    reports
}

fn sort(reports: &mut [DeviceReport]) {
    let rate = |report: &DeviceReport| report.limits.as_ref().map_or(-1.0, |limits| limits.read_gb_s);
    reports.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_reader_comes_first_and_absent_devices_last() {
        let measured = |read_gb_s| Ok(Limits { read_gb_s, int8_gop_s: 1.0 });
        let report = |device, limits| DeviceReport { device, limits };
        let mut reports = vec![
            report(Device::Metal, Err(Error::NotCompiled { feature: "metal" })),
            report(Device::Cpu, measured(20.0)),
            report(Device::Cuda, measured(2000.0)),
        ];
        sort(&mut reports);
        assert_eq!(
            reports.iter().map(|r| r.device).collect::<Vec<_>>(),
            [Device::Cuda, Device::Cpu, Device::Metal]
        );
    }
}
