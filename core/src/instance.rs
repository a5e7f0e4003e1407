//! What EC2 instance types offer, so that a group can be planned before its first node has shown itself.
//!
//! Source of the sizes: AWS, "Amazon EC2 instance types"; of the pod limits: amazon-eks-ami, `eni-max-pods.txt`;
//! of what the node keeps for itself: amazon-eks-ami, `kubelet` bootstrap (`getMemoryMebibytesToReserve`,
//! `getCPUMillicoresToReserve`) and the kubelet's default hard eviction threshold. Read 2026-11.

use crate::resources::{NVIDIA_GPU, Resources};

/// (name, vCPUs, memory in MiB, NVIDIA GPUs, pods)
const TYPES: &[(&str, u64, u64, u64, u64)] = &[
    ("c5.xlarge", 4, 8 << 10, 0, 58),
    ("c5.2xlarge", 8, 16 << 10, 0, 58),
    ("c5.4xlarge", 16, 32 << 10, 0, 234),
    ("g4dn.xlarge", 4, 16 << 10, 1, 29),
    ("g4dn.2xlarge", 8, 32 << 10, 1, 29),
    ("g4dn.4xlarge", 16, 64 << 10, 1, 29),
    ("g4dn.8xlarge", 32, 128 << 10, 1, 58),
    ("g4dn.12xlarge", 48, 192 << 10, 4, 234),
    ("g5.xlarge", 4, 16 << 10, 1, 58),
    ("g5.2xlarge", 8, 32 << 10, 1, 58),
    ("g5.12xlarge", 48, 192 << 10, 4, 737),
    ("m5.large", 2, 8 << 10, 0, 29),
    ("m5.xlarge", 4, 16 << 10, 0, 58),
    ("m5.2xlarge", 8, 32 << 10, 0, 58),
    ("m5.4xlarge", 16, 64 << 10, 0, 234),
    ("m5.8xlarge", 32, 128 << 10, 0, 234),
    ("m5.12xlarge", 48, 192 << 10, 0, 234),
    ("p4d.24xlarge", 96, 1152 << 10, 8, 737),
    ("p5.48xlarge", 192, 2048 << 10, 8, 100),
    ("r5.xlarge", 4, 32 << 10, 0, 58),
    ("r5.2xlarge", 8, 64 << 10, 0, 58),
];

/// What a node of this type offers to pods; `None` for a type not in the table.
pub fn allocatable(instance_type: &str) -> Option<Resources> {
    let (_, cpus, memory_mib, gpus, pods) = TYPES.iter().find(|(name, ..)| *name == instance_type)?;
    // 255 MiB and 11 MiB a pod for the kubelet and the runtime, 100 MiB below which the kubelet evicts. The kernel
    // takes some of the instance's memory before anybody can: Karpenter's default for that is 7.5 %.
    let memory_mib = memory_mib * 925 / 1000 - (255 + 11 * pods) - 100;
    let mut resources = Resources::default();
    resources.set("cpu", cpus * 1000 - reserved_cpu_millis(*cpus));
    resources.set("memory", memory_mib << 20);
    resources.set("pods", *pods);
    resources.set(NVIDIA_GPU, *gpus);
    Some(resources)
}

/// 6 % of the first core, 1 % of the second, 0.5 % of the next two, 0.25 % of the rest.
fn reserved_cpu_millis(cpus: u64) -> u64 {
    let beyond = |cores: u64| cpus.saturating_sub(cores);
    60 * cpus.min(1) + 10 * beyond(1).min(1) + 5 * beyond(2).min(2) + beyond(4) * 5 / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_types_are_known() {
        let cpu = allocatable("m5.xlarge").unwrap();
        assert_eq!((cpu.amount("cpu"), cpu.amount("pods"), cpu.has_gpu()), (3920, 58, false));
        assert!(allocatable("g4dn.xlarge").unwrap().has_gpu());
        assert_eq!(allocatable("x99.giant"), None);
    }

    #[test]
    fn the_table_is_sorted_within_families_and_has_no_name_twice() {
        let mut names: Vec<_> = TYPES.iter().map(|(name, ..)| name).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
