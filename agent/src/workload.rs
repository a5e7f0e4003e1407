//! Pods and containers with what they used: cgroups put together with their names. Sums and names only; no rates.

use std::collections::BTreeMap;
use std::time::{Duration, Instant as Monotonic};

use crate::pods::{PodName, PodNames};
use crate::reading::Reading;
use crate::source::cgroup::{Cgroup, Figures};
use crate::source::ebpf::CgroupSchedule;
use crate::source::kubepods::Owner;
use crate::source::pod_resources::Allocation;

/// One pod with a cgroup on this node.
#[derive(Debug)]
pub struct Pod<'a> {
    /// Of its object where that is known, else as in its cgroup's name.
    pub uid: &'a str,
    /// `None`: not known, or not yet.
    pub name: Option<&'a PodName>,
    /// Of the pod's own cgroup. `None`: it has none that is followed.
    pub figures: Option<&'a Figures>,
    /// Of all cgroups that are the pod's.
    pub schedule: Option<CgroupSchedule>,
    /// By name, or by id where that is all there is.
    pub containers: BTreeMap<&'a str, Container<'a>>,
}

#[derive(Debug)]
pub struct Container<'a> {
    pub id: &'a str,
    /// `None`: its own cgroup is not followed.
    pub figures: Option<&'a Figures>,
    pub schedule: Option<CgroupSchedule>,
    /// Of CUDA kernels. `None`: not counted.
    pub cuda_launches: Option<u64>,
}

impl Pod<'_> {
    /// Empty while the name is not known: labels are always there.
    pub fn namespace(&self) -> &str {
        self.name.map_or("", |name| &name.namespace)
    }

    pub fn name(&self) -> &str {
        self.name.map_or("", |name| &name.name)
    }
}

/// By the UID in their cgroups' names.
pub fn pods<'a>(reading: &'a Reading, names: &'a PodNames) -> BTreeMap<&'a str, Pod<'a>> {
    let mut pods = BTreeMap::new();
    for cgroup in reading.cgroups() {
        let Some(owner) = &cgroup.owner else { continue };
        let pod = pods.entry(&*owner.pod_uid).or_insert_with(|| {
            let name = names.get(&owner.pod_uid);
            let uid = name.map_or(&*owner.pod_uid, |name| &name.uid);
            Pod { uid, name, figures: None, schedule: None, containers: BTreeMap::new() }
        });
        add(&mut pod.schedule, cgroup.schedule.as_ref());
        let own = owner.is_own.then_some(&cgroup.figures);
        let Some(id) = &owner.container_id else {
            pod.figures = pod.figures.or(own);
            continue;
        };
        if let Some(name) = container_name(id, pod.name) {
            let nothing = || Container { id, figures: None, schedule: None, cuda_launches: None };
            let container = pod.containers.entry(name).or_insert_with(nothing);
            container.figures = container.figures.or(own);
            add(&mut container.schedule, cgroup.schedule.as_ref());
            if let Some(launches) = cgroup.cuda_launches {
                *container.cuda_launches.get_or_insert(0) += launches;
            }
        }
    }
    pods
}

/// What a container is called: its id, of a pod that is not known. Of one that is, an id without a name is its sandbox,
/// or a container that has just come or gone, and none of its containers.
pub fn container_name<'a>(id: &'a str, pod: Option<&'a PodName>) -> Option<&'a str> {
    pod.map_or(Some(id), |pod| pod.containers.get(id).map(String::as_str))
}

/// How long ago the newest container of a pod appeared that is no daemon. `None`: none runs whose beginning was seen.
pub fn newest(reading: &Reading, names: &PodNames, now: Monotonic) -> Option<Duration> {
    let is_work = |cgroup: &Cgroup| {
        let owner = cgroup.owner.as_ref().filter(|owner| owner.container_id.is_some());
        owner.is_some_and(|owner| names.get(&owner.pod_uid).is_none_or(|name| !name.is_daemon))
    };
    let appeared = reading.cgroups().iter().filter(|cgroup| is_work(cgroup)).filter_map(|cgroup| cgroup.appeared).max();
    appeared.map(|appeared| now.saturating_duration_since(appeared))
}

/// Allocations without those of pods that have ended: before Kubernetes 1.34 the kubelet lists these until their objects
/// are deleted (kubernetes/kubernetes#119423), and others may have their devices by then. A pod that has a name but no
/// cgroup has ended, or is about to start; where not all cgroups are known, none is left out.
pub fn allocations<'a>(
    allocations: &'a [Allocation],
    reading: &Reading,
    names: &PodNames,
    pods: &BTreeMap<&str, Pod<'_>>,
) -> Vec<&'a Allocation> {
    let are_complete = reading.cgroups.as_ref().is_some_and(|cgroups| cgroups.complete);
    let runs = |it: &Allocation| pods.values().any(|pod| (pod.namespace(), pod.name()) == (&*it.namespace, &*it.pod));
    let has_ended = |it: &Allocation| are_complete && names.contains(&it.namespace, &it.pod) && !runs(it);
    allocations.iter().filter(|it| !has_ended(it)).collect()
}

/// Whose a process is; all empty for one of no pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct User<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    /// Its id while nobody tells the name.
    pub container: &'a str,
    pub uid: &'a str,
}

impl<'a> User<'a> {
    pub fn of(owner: &'a Owner, names: &'a PodNames) -> Self {
        let id = owner.container_id.as_deref().unwrap_or_default();
        match names.get(&owner.pod_uid) {
            Some(name) => Self {
                namespace: &name.namespace,
                pod: &name.name,
                container: name.containers.get(id).map_or(id, String::as_str),
                uid: &name.uid,
            },
            None => Self { container: id, uid: &owner.pod_uid, ..Self::default() },
        }
    }
}

fn add(sum: &mut Option<CgroupSchedule>, part: Option<&CgroupSchedule>) {
    let Some(part) = part else { return };
    sum.get_or_insert(CgroupSchedule { id: part.id, ..CgroupSchedule::default() }).add(part);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::source::cgroup::Cgroups;
    use crate::source::kubepods;

    const UID: &str = "8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn reading(at: Monotonic, below_the_pod: &[&str]) -> Reading {
        let pod = format!("/kubepods/burstable/pod{UID}");
        let paths = ["/system.slice".to_owned(), pod.clone()].into_iter();
        let paths = paths.chain(below_the_pod.iter().map(|path| format!("{pod}/{path}")));
        let cgroup = |(number, path): (u64, String)| Cgroup {
            owner: kubepods::owner(&path).map(Arc::new),
            path: path.into(),
            id: Some(number),
            appeared: Some(at),
            figures: Figures { cpu: Some(Duration::from_secs(number)), ..Figures::default() },
            schedule: Some(CgroupSchedule { run: Duration::from_secs(number), ..CgroupSchedule::default() }),
            cuda_launches: Some(number),
        };
        let cgroups = Cgroups { at, all: (1..).zip(paths).map(cgroup).collect(), complete: true, errors: Vec::new() };
        Reading { cgroups: Some(Arc::new(cgroups)), ..Reading::empty(at) }
    }

    fn names(containers: &[(String, &str)], is_daemon: bool) -> PodNames {
        let containers = containers.iter().map(|(id, name)| (id.clone(), (*name).to_owned())).collect();
        let name = PodName {
            namespace: "ml".into(),
            name: "train".into(),
            uid: UID.into(),
            is_daemon,
            containers,
            ..PodName::default()
        };
        PodNames::of([(UID, name)])
    }

    #[test]
    fn what_runs_below_a_container_is_the_containers_and_its_pods() {
        let (main, sandbox) = (id('a'), id('b'));
        let reading = reading(Monotonic::now(), &[&main, &format!("{main}/inner"), &sandbox]);
        let names = names(&[(main.clone(), "main")], false);
        let pods = pods(&reading, &names);
        let pod = &pods[UID];
        assert_eq!((pod.namespace(), pod.name()), ("ml", "train"));
        assert_eq!(pod.figures.unwrap().cpu, Some(Duration::from_secs(2)), "of its own cgroup");
        assert_eq!(pod.schedule.unwrap().run, Duration::from_secs(2 + 3 + 4 + 5), "of all that are its");
        assert_eq!(pod.containers.keys().copied().collect::<Vec<_>>(), ["main"], "the sandbox is none");
        let container = &pod.containers["main"];
        assert_eq!(container.figures.unwrap().cpu, Some(Duration::from_secs(3)));
        assert_eq!(container.schedule.unwrap().run, Duration::from_secs(3 + 4));
        assert_eq!(container.cuda_launches, Some(3 + 4));
    }

    #[test]
    fn without_names_there_are_ids() {
        let reading = reading(Monotonic::now(), &[&id('a'), &id('b')]);
        let nobody = PodNames::default();
        let pods = pods(&reading, &nobody);
        let pod = &pods[UID];
        assert_eq!((pod.namespace(), pod.name(), pod.uid), ("", "", UID));
        assert_eq!(pod.containers.keys().copied().collect::<Vec<_>>(), [id('a'), id('b')]);
    }

    #[test]
    fn devices_of_a_pod_that_has_ended_are_no_longer_its() {
        let at = Monotonic::now();
        let named = |name: &str| PodName { namespace: "ml".into(), name: name.into(), ..PodName::default() };
        let names = PodNames::of([(UID, named("train")), ("ended", named("ended"))]);
        let given = |pod: &str| Allocation {
            namespace: "ml".into(),
            pod: pod.into(),
            container: "main".into(),
            resource: "nvidia.com/gpu".into(),
            device_ids: vec!["GPU-0".into()],
        };
        let all = ["train", "ended", "new"].map(given);
        let check = |reading: &Reading, names: &PodNames, expected: &[&str]| {
            let held = allocations(&all, reading, names, &pods(reading, names));
            assert_eq!(held.iter().map(|it| &*it.pod).collect::<Vec<_>>(), expected);
        };
        check(&reading(at, &[]), &names, &["train", "new"]);
        check(&reading(at, &[]), &PodNames::default(), &["train", "ended", "new"]);
        check(&Reading::empty(at), &names, &["train", "ended", "new"]);
    }

    #[test]
    fn a_daemons_start_is_no_workloads() {
        let at = Monotonic::now();
        let now = at + Duration::from_secs(7);
        assert_eq!(newest(&reading(at, &[&id('a')]), &PodNames::default(), now), Some(Duration::from_secs(7)));
        assert_eq!(newest(&reading(at, &[&id('a')]), &names(&[], true), now), None);
        assert_eq!(newest(&reading(at, &[]), &names(&[], false), now), None, "no container yet");
    }
}
