//! `/compat/dcgm`: the GPUs under the names, units and labels of dcgm-exporter's default set, for dashboards and rules
//! that know no others. A figure that a GPU does not have is left out, never DCGM's blank value. Of its set are missing
//! `DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL` and `DCGM_FI_DEV_VGPU_LICENSE_STATUS`, which NVML does not tell.

mod family;
mod holders;

use super::write::escaped;
use crate::gpus::GpuReading;
use crate::sampler::Sample;
use crate::source::gpu::{Gpu, Gpus, MigInstance};
use crate::workload;

use family::FAMILIES;
use holders::Holders;

/// What the label of the node's name is called. dcgm-exporter changed it in 2026, and rules that are older look for
/// `Hostname`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum HostnameLabel {
    #[default]
    #[value(name = "hostname")]
    Lower,
    #[value(name = "Hostname")]
    Upper,
}

/// How the page is written.
#[derive(Clone, Debug)]
pub struct Dcgm {
    pub hostname_label: HostnameLabel,
    pub hostname: String,
}

/// What dcgm-exporter calls an entity: a GPU, or in MIG mode each of its instances.
struct Entity<'a> {
    gpu: &'a Gpu,
    instance: Option<&'a MigInstance>,
    last_xid: Option<u32>,
    labels: String,
}

impl Dcgm {
    /// In the classic text format: DCGM's counters do not end in `_total`, which OpenMetrics asks for.
    pub fn render(&self, sample: &Sample) -> String {
        let mut page = String::new();
        let Some(reading) = &sample.reading.gpus else { return page };
        let Some(gpus) = &reading.gpus else { return page };
        let pods = workload::pods(&sample.reading, &sample.names);
        let allocations = sample.allocations.as_deref().unwrap_or_default();
        let allocations = workload::allocations(allocations, &sample.reading, &sample.names, &pods);
        let holders = Holders::of(&allocations, reading, gpus, &sample.names);
        let entities: Vec<_> = gpus.all.iter().flat_map(|gpu| self.entities(gpus, gpu, &holders, reading)).collect();
        for family in &FAMILIES {
            let mut rows = entities.iter().filter_map(|entity| Some((entity, (family.value)(entity)?))).peekable();
            if rows.peek().is_none() {
                continue;
            }
            page += &format!("# HELP {0} {1}\n# TYPE {0} {2}\n", family.name, family.help, family.kind);
            for (entity, value) in rows {
                page += &format!("{}{{{}}} {value}\n", family.name, entity.labels);
            }
        }
        page
    }

    fn entities<'a>(&self, gpus: &Gpus, gpu: &'a Gpu, holders: &Holders<'_>, reading: &GpuReading) -> Vec<Entity<'a>> {
        let health = reading.health.iter().find(|health| Some(health.pci) == gpu.identity.pci);
        let last_xid = health.map(|health| health.last_xid.unwrap_or(0));
        let entity = |instance: Option<&'a MigInstance>| {
            let labels = self.labels(gpus, gpu, instance, holders);
            Entity { gpu, instance, last_xid, labels }
        };
        match &gpu.mig {
            Some(instances) => instances.iter().map(|instance| entity(Some(instance))).collect(),
            None => vec![entity(None)],
        }
    }

    fn labels(&self, gpus: &Gpus, gpu: &Gpu, instance: Option<&MigInstance>, holders: &Holders<'_>) -> String {
        let identity = &gpu.identity;
        let device = identity.minor.map_or_else(|| identity.index.to_string(), |minor| minor.to_string());
        let pci = identity.pci.map(|pci| pci.to_string()).unwrap_or_default();
        let mut labels = vec![
            ("gpu", identity.index.to_string()),
            ("UUID", identity.uuid.clone()),
            ("pci_bus_id", pci),
            ("device", format!("nvidia{device}")),
            ("modelName", identity.model.clone()),
        ];
        if let Some(instance) = instance {
            labels.push(("GPU_I_PROFILE", instance.profile.to_string()));
            labels.push(("GPU_I_ID", instance.gpu_instance.map(|id| id.to_string()).unwrap_or_default()));
        }
        let hostname = match self.hostname_label {
            HostnameLabel::Lower => "hostname",
            HostnameLabel::Upper => "Hostname",
        };
        labels.push((hostname, self.hostname.clone()));
        labels.push(("DCGM_FI_DRIVER_VERSION", gpus.driver_version.clone()));
        if let Some(holder) = holders.only(instance.map_or(&identity.uuid, |instance| &instance.uuid)) {
            labels.push(("container", holder.container.to_owned()));
            labels.push(("namespace", holder.namespace.to_owned()));
            labels.push(("pod", holder.pod.to_owned()));
        }
        let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
        labels.collect::<Vec<_>>().join(",")
    }
}
