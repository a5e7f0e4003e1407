//! What the ids of GPUs mean that device plugins give out. Pure.

use crate::source::gpu::Gpus;

/// The GPU, or part of one, that a device id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device<'a> {
    /// NVML's UUID of a GPU (`GPU-…`) or of a MIG device (`MIG-…`).
    Uuid(&'a str),
    /// By the number of `/dev/nvidia…` and, of MIG, that of the GPU instance.
    Minor { gpu: u32, gpu_instance: Option<u32> },
}

impl<'a> Device<'a> {
    /// `None`: no GPU of NVIDIA's.
    ///
    /// NVIDIA's plugin has a UUID and, where a GPU is shared by time-slicing or MPS, the number of the share: `::N`, or
    /// `-N` in old versions. Google's has `nvidiaN`, for MIG `nvidiaN/giN`, for a share `/vgpuN` behind either. Who has a
    /// share of a GPU has that GPU, as far as NVML can tell.
    pub(super) fn parse(device_id: &'a str) -> Option<Self> {
        if let Some(rest) = device_id.strip_prefix("nvidia") {
            return Self::minor(rest);
        }
        let (prefix, rest) = device_id.split_at_checked("GPU-".len())?;
        if !matches!(prefix, "GPU-" | "MIG-") {
            return None;
        }
        // Before driver 470 a MIG device was called MIG-GPU-<uuid>/<GPU instance>/<compute instance>.
        if let Some(old) = rest.strip_prefix("GPU-").filter(|_| prefix == "MIG-") {
            let mut parts = old.split('/');
            let sound =
                parts.next().is_some_and(is_uuid) && parts.by_ref().take(2).filter(|it| is_number(it)).count() == 2;
            return (sound && parts.next().is_none()).then_some(Self::Uuid(device_id));
        }
        let (uuid, share) = rest.split_at_checked(UUID)?;
        let share = share.strip_prefix("::").or_else(|| share.strip_prefix('-')).map_or(share.is_empty(), is_number);
        (is_uuid(uuid) && share).then_some(Self::Uuid(&device_id[..prefix.len() + UUID]))
    }

    /// `None`: `gpus`, as NVML has them, has none of that number.
    pub(super) fn uuid(self, gpus: Option<&'a Gpus>) -> Option<&'a str> {
        let (number, gpu_instance) = match self {
            Self::Uuid(uuid) => return Some(uuid),
            Self::Minor { gpu, gpu_instance } => (gpu, gpu_instance),
        };
        let gpu = gpus?.all.iter().find(|gpu| gpu.identity.minor == Some(number))?;
        if gpu_instance.is_none() {
            return Some(&gpu.identity.uuid);
        }
        let mut instances = gpu.mig.iter().flatten();
        instances.find(|instance| instance.gpu_instance == gpu_instance).map(|instance| &*instance.uuid)
    }

    fn minor(rest: &str) -> Option<Self> {
        let mut parts = rest.split('/').peekable();
        let gpu = number(parts.next()?)?;
        let gpu_instance = match parts.next_if(|part| part.starts_with("gi")) {
            Some(part) => Some(number(&part["gi".len()..])?),
            None => None,
        };
        let share = parts.next().is_none_or(|part| part.strip_prefix("vgpu").is_some_and(is_number));
        (share && parts.next().is_none()).then_some(Self::Minor { gpu, gpu_instance })
    }
}

/// Characters of a UUID as text (RFC 9562 §4).
const UUID: usize = 36;

fn is_uuid(text: &str) -> bool {
    let groups = text.split('-').map(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(group.len()));
    groups.eq([8, 4, 4, 4, 12].map(Some))
}

fn is_number(text: &str) -> bool {
    number(text).is_some()
}

/// Digits only: `parse` alone would take a sign as well.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::source::gpu::{Gpu, Identity, MigInstance, Now};

    const UUID: &str = "e1f0b2c3-0a1b-4c5d-8e9f-001122334455";

    #[test]
    fn ids_of_each_plugin_are_understood() {
        let check = |id: &str, expected: &str| assert_eq!(Device::parse(id), Some(Device::Uuid(expected)), "{id}");
        let (gpu, mig) = (format!("GPU-{UUID}"), format!("MIG-{UUID}"));
        check(&gpu, &gpu);
        check(&mig, &mig);
        check(&format!("{gpu}::0"), &gpu);
        check(&format!("{gpu}::15"), &gpu);
        check(&format!("{gpu}-3"), &gpu);
        check(&format!("{mig}::1"), &mig);
        let old = format!("MIG-GPU-{UUID}/7/0");
        check(&old, &old);

        let check = |id: &str, gpu, gpu_instance| {
            assert_eq!(Device::parse(id), Some(Device::Minor { gpu, gpu_instance }), "{id}");
        };
        check("nvidia0", 0, None);
        check("nvidia12/vgpu3", 12, None);
        check("nvidia0/gi9", 0, Some(9));
        check("nvidia1/gi0/vgpu1", 1, Some(0));
    }

    #[test]
    fn a_number_is_the_gpu_that_nvml_has_under_it() {
        let identity = Identity { uuid: "GPU-a".into(), index: 0, model: String::new(), pci: None, minor: Some(3) };
        let instance = MigInstance {
            uuid: "MIG-b".into(),
            profile: "1g.10gb".into(),
            gpu_instance: Some(9),
            memory: None,
            activity: None,
            processes: None,
        };
        let gpu = Gpu {
            identity: Arc::new(identity),
            lost: false,
            now: Now::default(),
            slow: Arc::default(),
            mig: Some(vec![instance]),
            processes: None,
        };
        let gpus = Gpus { all: vec![gpu], ..Gpus::default() };
        let check = |id: &str, expected| assert_eq!(Device::parse(id).unwrap().uuid(Some(&gpus)), expected, "{id}");
        check("nvidia3", Some("GPU-a"));
        check("nvidia3/vgpu1", Some("GPU-a"));
        check("nvidia3/gi9/vgpu0", Some("MIG-b"));
        check("nvidia3/gi1", None);
        check("nvidia0", None);
        assert_eq!(Device::parse("nvidia3").unwrap().uuid(None), None);
    }

    #[test]
    fn what_is_no_gpu_is_none() {
        let check = |id: &str| assert_eq!(Device::parse(id), None, "{id}");
        check("");
        check("rdmap0s6");
        check("GPU-");
        check("GPU-éééé");
        check(UUID);
        check(&format!("gpu-{UUID}"));
        check(&format!("GPU-{UUID}::"));
        check(&format!("GPU-{UUID}::+1"));
        check(&format!("GPU-{UUID}/0/0"));
        check(&format!("MIG-GPU-{UUID}/7"));
        check(&format!("MIG-GPU-{UUID}/7/0/1"));
        check(&format!("MIG-GPU-{UUID}"));
        check("nvidia");
        check("nvidiactl");
        check("nvidia-uvm");
        check("nvidia0/gi");
        check("nvidia0/vgpu1/gi0");
        check("nvidia0/gi0/vgpu1/x");
        check("nvidia99999999999");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(id in "(GPU-|MIG-|nvidia|/|gi|vgpu|::|-|[0-9a-f]{4,12}|\\PC){0,12}") {
            let _any_answer = Device::parse(&id);
        }

        #[test]
        fn the_number_of_a_share_is_cut_off(
            uuid in "(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
            share in "((::|-)[0-9]{1,3})?",
        ) {
            let id = format!("{uuid}{share}");
            prop_assert_eq!(Device::parse(&id), Some(Device::Uuid(&uuid)));
        }
    }
}
