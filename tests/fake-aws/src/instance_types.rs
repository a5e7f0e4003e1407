//! How large instances are, from EC2's DescribeInstanceTypes (November 2026), and what their Nodes offer. Interfaces are
//! those of the first network card, the only one whose addresses pods get.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

/// To add a type, add a line.
const TABLE: &str = include_str!("instance_types.csv");

pub(crate) struct InstanceType {
    /// As Kubernetes names it.
    pub(crate) architecture: &'static str,
    cpus: u64,
    memory_mib: u64,
    gpus: u64,
    interfaces: u64,
    addresses_per_interface: u64,
}

pub(crate) fn find(name: &str) -> Option<&'static InstanceType> {
    static TYPES: LazyLock<BTreeMap<&str, InstanceType>> =
        LazyLock::new(|| TABLE.lines().skip(1).map(|line| read(line).expect("seven fields each")).collect());
    TYPES.get(name)
}

fn read(line: &'static str) -> Option<(&'static str, InstanceType)> {
    let (name, rest) = line.split_once(',')?;
    let (architecture, numbers) = rest.split_once(',')?;
    let numbers = numbers.split(',').map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
    let [cpus, memory_mib, gpus, interfaces, addresses_per_interface] = numbers.try_into().ok()?;
    Some((name, InstanceType { architecture, cpus, memory_mib, gpus, interfaces, addresses_per_interface }))
}

impl InstanceType {
    pub(crate) fn capacity(&self) -> Value {
        let mut capacity = json!({
            "cpu": self.cpus.to_string(),
            "memory": format!("{}Mi", self.memory_mib),
            "pods": self.pods().to_string(),
            "ephemeral-storage": "100Gi",
        });
        if self.gpus > 0 {
            capacity["nvidia.com/gpu"] = self.gpus.to_string().into();
        }
        capacity
    }

    /// The capacity less what EKS's AMI keeps for the system: of memory 255 MiB, 11 MiB a pod, and 100 MiB below which
    /// the kubelet evicts.
    pub(crate) fn allocatable(&self) -> Value {
        let mut allocatable = self.capacity();
        allocatable["cpu"] = format!("{}m", 1000 * self.cpus - self.kept_millicpu()).into();
        allocatable["memory"] = format!("{}Mi", self.memory_mib - (255 + 11 * self.pods() + 100)).into();
        allocatable
    }

    /// One address of each interface is its own; two pods use the host's network.
    fn pods(&self) -> u64 {
        self.interfaces * (self.addresses_per_interface - 1) + 2
    }

    /// 6 % of the first core, 1 % of the second, 0.5 % of the next two, 0.25 % of the rest; rounded up.
    fn kept_millicpu(&self) -> u64 {
        let tenths = (0..self.cpus).map(|core| match core {
            0 => 600,
            1 => 100,
            2 | 3 => 50,
            _ => 25,
        });
        tenths.sum::<u64>().div_ceil(10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_eks() {
        let xlarge = find("m5.xlarge").unwrap();
        assert_eq!(xlarge.capacity()["pods"], "58");
        assert_eq!(xlarge.allocatable()["cpu"], "3920m");
        assert_eq!(xlarge.allocatable()["memory"], "15391Mi");
        assert_eq!(xlarge.capacity().get("nvidia.com/gpu"), None);
        assert_eq!(find("g4dn.12xlarge").unwrap().allocatable()["nvidia.com/gpu"], "4");
        assert_eq!(find("c7g.xlarge").unwrap().architecture, "arm64");
        assert!(find("x99.giant").is_none());
    }

    #[test]
    fn every_type_leaves_room_for_pods() {
        for name in TABLE.lines().skip(1).filter_map(|line| line.split(',').next()) {
            let found = find(name).unwrap();
            assert!(found.memory_mib > 255 + 11 * found.pods() + 100, "{name}");
        }
    }
}
