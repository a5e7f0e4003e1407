//! The agent's own use of the machine, under the names that every Prometheus client uses.

use std::fmt;
use std::sync::Mutex;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::write::Writer;

#[derive(Debug)]
pub(super) struct Process(Mutex<Option<System>>);

impl Process {
    pub(super) fn new() -> Self {
        // Without `/proc` nothing is known of the agent itself either.
        Self(Mutex::new(System::new().ok()))
    }
}

impl Collector for Process {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let pid = Pid::from_u32(std::process::id());
        let mut system = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(system) = system.as_mut() else { return Ok(()) };
        let wanted = ProcessRefreshKind::nothing().with_memory().with_cpu().without_tasks();
        let _refreshed = system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
        let Some(process) = system.process(pid) else { return Ok(()) };
        let mut page = Writer(encoder);
        let cpu_seconds = process.accumulated_cpu_time() as f64 / 1000.0;
        page.counter("process_cpu_seconds", "CPU time of the agent.", cpu_seconds)?;
        let files = process.open_files().map(|files| files as f64);
        page.gauge("process_open_fds", "Open file descriptors of the agent.", files)?;
        page.gauge("process_resident_memory_bytes", "Resident memory of the agent.", process.memory() as f64)?;
        page.gauge("process_virtual_memory_bytes", "Virtual memory of the agent.", process.virtual_memory() as f64)?;
        let start = process.start_time() as f64;
        page.gauge("process_start_time_seconds", "When the agent started, since the Unix epoch.", start)
    }
}
