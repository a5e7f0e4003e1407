//! `/metrics/resource`: CPU time and memory of the node, its pods and containers as the kubelet's endpoint of that name
//! has them, for metrics-server and whoever else asks kubelets. Names, labels, types and help are the kubelet's
//! (`pkg/kubelet/metrics/collectors/resource_metrics.go`), and each figure carries the time at which it was read.
//! Of its set is missing `container_swap_limit_bytes`, which is alpha there.

mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use ebb_core::time::Instant;

use crate::clock::Clock;
use crate::sampler::Sample;
use crate::source::cgroup::Figures;
use crate::usage::used;
use crate::workload::{self, Container, Pod};

use text::{Labels, Text};

/// How the page is written.
#[derive(Clone, Copy, Debug)]
pub struct ResourceMetrics {
    /// A time must not move by a millisecond from page to page: whoever takes rates would see time pass and no work
    /// done. So each comes from its own moment, by one clock.
    pub clock: Clock,
}

impl ResourceMetrics {
    /// In the classic text format, as metrics-server asks for it.
    pub fn render(&self, sample: &Sample) -> String {
        let pods = workload::pods(&sample.reading, &sample.names);
        let named = named(&pods);
        let mut page = Text::default();
        if let Some(cgroups) = &sample.reading.cgroups {
            containers(&mut page, &named, self.clock.at(cgroups.at));
        }
        node(&mut page, sample);
        if let Some(cgroups) = &sample.reading.cgroups {
            self::pods(&mut page, &named, self.clock.at(cgroups.at));
        }
        // Pods of which not one has a name: nobody tells the names, and none of them can be shown.
        let failed = sample.reading.cgroups.is_none() || named.is_empty() && !pods.is_empty();
        page.gauges(
            "resource_scrape_error",
            "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
            [([], f64::from(u8::from(failed)), None)],
        );
        page.into()
    }
}

/// By namespace and name, which the kubelet knows of each of its pods; without them two pods' series would be one.
fn named<'a>(pods: &'a BTreeMap<&str, Pod<'a>>) -> BTreeMap<(&'a str, &'a str), &'a Pod<'a>> {
    pods.values().filter(|pod| pod.name.is_some()).map(|pod| ((pod.namespace(), pod.name()), pod)).collect()
}

fn containers(page: &mut Text, pods: &BTreeMap<(&str, &str), &Pod<'_>>, at: Instant) {
    type Value = fn(&Pod<'_>, &Container<'_>) -> Option<f64>;
    let rows = |value: Value, at: Option<Instant>| {
        pods.iter().flat_map(move |((namespace, pod), found)| {
            found.containers.iter().filter_map(move |(name, container)| {
                let labels = [("container", *name), ("namespace", *namespace), ("pod", *pod)];
                Some((labels, value(found, container)?, at))
            })
        })
    };
    page.counters(
        "container_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        rows(|_, container| container.figures.and_then(cpu), Some(at)),
    );
    page.gauges(
        "container_memory_working_set_bytes",
        "[STABLE] Current working set of the container in bytes",
        rows(|_, container| container.figures.and_then(working_set), Some(at)),
    );
    page.gauges(
        "container_start_time_seconds",
        "[STABLE] Start time of the container since unix epoch in seconds",
        rows(|pod, container| pod.name?.started.get(container.id).map(seconds), None),
    );
    page.gauges(
        "container_swap_usage_bytes",
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        rows(|_, container| container.figures.and_then(swap), Some(at)),
    );
}

fn node(page: &mut Text, sample: &Sample) {
    let row = |value: Option<f64>| value.map(|value| ([], value, Some(sample.at)));
    page.counters(
        "node_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        row(sample.reading.stat.as_ref().map(|stat| used(stat.node).as_secs_f64())),
    );
    let memory = sample.reading.memory;
    page.gauges(
        "node_memory_working_set_bytes",
        "[STABLE] Current working set of the node in bytes",
        row(memory.map(|memory| memory.working_set as f64)),
    );
    let swap = memory.and_then(|memory| memory.swap_total?.checked_sub(memory.swap_free?));
    page.gauges(
        "node_swap_usage_bytes",
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
        row(swap.map(|bytes| bytes as f64)),
    );
}

fn pods(page: &mut Text, pods: &BTreeMap<(&str, &str), &Pod<'_>>, at: Instant) {
    let rows = |value: fn(&Figures) -> Option<f64>| {
        pods.iter().filter_map(move |((namespace, name), pod)| {
            let labels: Labels<'_, 2> = [("namespace", *namespace), ("pod", *name)];
            Some((labels, value(pod.figures?)?, Some(at)))
        })
    };
    page.counters(
        "pod_cpu_usage_seconds_total",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        rows(cpu),
    );
    page.gauges("pod_memory_working_set_bytes", "[STABLE] Current working set of the pod in bytes", rows(working_set));
    page.gauges(
        "pod_swap_usage_bytes",
        "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        rows(swap),
    );
}

fn cpu(figures: &Figures) -> Option<f64> {
    figures.cpu.map(|cpu| cpu.as_secs_f64())
}

fn working_set(figures: &Figures) -> Option<f64> {
    figures.memory.working_set().map(|bytes| bytes as f64)
}

fn swap(figures: &Figures) -> Option<f64> {
    figures.memory.swap.map(|bytes| bytes as f64)
}

fn seconds(at: &Instant) -> f64 {
    Duration::from_millis(at.as_millis()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Instant as Monotonic;

    use ebb_core::classify::{Class, Missing, Utilization, Verdict};

    use super::*;
    use crate::health::Healths;
    use crate::pods::{PodName, PodNames};
    use crate::reading::Reading;
    use crate::source::cgroup::CgroupTree;
    use crate::source::proc::Proc;

    const TRAIN: &str = "8f5d2c4e-1b7a-4f0e-9c3d-5a6b7c8d9e0f";
    const ETCD: &str = "0123456789abcdef0123456789abcdef";
    const UNKNOWN: &str = "11111111-1b7a-4f0e-9c3d-5a6b7c8d9e0f";
    /// When the cgroups were read; all else a second later.
    const WALL: Instant = Instant::from_millis(1_790_000_000_123);

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    fn cgroup(folder: &Path, cpu: &str, current: &str, inactive_file: &str, swap: &str) {
        let cpu = format!("usage_usec {cpu}\nuser_usec 0\nsystem_usec 0\n");
        let memory = format!("anon 1\nfile 1\ninactive_file {inactive_file}\n");
        write(
            folder,
            &[("cpu.stat", &cpu), ("memory.current", current), ("memory.stat", &memory), ("memory.swap.current", swap)],
        );
    }

    /// A node with a pod of two containers and a sandbox, a static pod whose cgroup does not count swap, and a pod of
    /// which the API server has not told yet.
    fn fixture() -> (ResourceMetrics, Sample) {
        let root = tempfile::tempdir().unwrap();
        let stat = "cpu  100 20 300 4000 500 6 7 800 90 0\ncpu0 100 20 300 4000 500 6 7 800 90 0\nctxt 5\n";
        let meminfo = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\nInactive(file): 200 kB\n\
            SwapTotal: 64 kB\nSwapFree: 60 kB\n";
        write(&root.path().join("proc"), &[("stat", stat), ("meminfo", meminfo)]);
        let tree = root.path().join("cgroup");
        write(&tree, &[("cgroup.controllers", "cpu memory\n"), ("cpu.stat", "usage_usec 1\n")]);
        let burstable = tree.join("kubepods.slice/kubepods-burstable.slice");
        let slice = |uid: &str| burstable.join(format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_")));
        let scope = |uid, digit| slice(uid).join(format!("cri-containerd-{}.scope", id(digit)));
        cgroup(&slice(TRAIN), "12345678", "1000000", "100000", "0");
        cgroup(&scope(TRAIN, 'a'), "12000000", "900000", "50000", "4096");
        cgroup(&scope(TRAIN, 'b'), "300000", "50000", "60000", "0");
        cgroup(&scope(TRAIN, 'c'), "45678", "4096", "0", "0");
        cgroup(&slice(UNKNOWN), "99", "99", "0", "0");
        let etcd = tree.join(format!("kubepods.slice/kubepods-pod{ETCD}.slice"));
        cgroup(&etcd, "5000000", "2000", "1000", "0");
        fs::remove_file(etcd.join("memory.swap.current")).unwrap();

        let read = Monotonic::now();
        let sampled = read + Duration::from_secs(1);
        let (buffer, mut proc) = (&mut Vec::new(), Proc::new(&root.path().join("proc")));
        let reading = Reading {
            stat: Some(proc.stat(buffer).unwrap()),
            memory: Some(proc.memory(buffer).unwrap()),
            cgroups: Some(Arc::new(CgroupTree::new(&tree, 100).read(read, buffer).unwrap())),
            ..Reading::empty(sampled)
        };
        let clock = Clock::set(read, WALL);
        let at = clock.at(sampled);
        let sample = Sample {
            at,
            taken: sampled,
            reading: Arc::new(reading),
            before: None,
            names: Arc::new(names()),
            allocations: None,
            utilization: Utilization::default(),
            verdict: Verdict {
                class: Class::Unknown { since: at, missing: Missing::History },
                window: Utilization::default(),
                gpu_waste: None,
            },
            because: String::new(),
            healths: Healths::default(),
        };
        (ResourceMetrics { clock }, sample)
    }

    fn names() -> PodNames {
        let containers = [(id('a'), "main".to_owned()), (id('b'), "sidecar".to_owned())];
        let train = PodName {
            namespace: "ml".into(),
            name: "train-0".into(),
            containers: containers.into(),
            started: [(id('a'), Instant::from_millis(1_789_999_000_000))].into(),
            ..PodName::default()
        };
        let etcd = PodName { namespace: "kube-system".into(), name: "etcd-a".into(), ..PodName::default() };
        PodNames::of([(TRAIN, train), (ETCD, etcd)])
    }

    #[test]
    fn the_page_is_the_kubelets() {
        let (metrics, sample) = fixture();
        let golden = include_str!("../../tests/golden/resource.txt");
        let page = metrics.render(&sample);
        assert_eq!(page, golden, "{page}");
    }

    #[test]
    fn what_was_not_read_is_left_out_and_said() {
        let (metrics, mut sample) = fixture();
        let check = |sample: &Sample, failed: &str, node: bool, container: bool| {
            let page = metrics.render(sample);
            assert!(page.ends_with(&format!("\nresource_scrape_error {failed}\n")), "{page}");
            assert_eq!(page.contains("\nnode_cpu_usage_seconds_total "), node, "{page}");
            assert_eq!(page.contains("\ncontainer_cpu_usage_seconds_total{"), container, "{page}");
        };
        check(&sample, "0", true, true);
        let unnamed = std::mem::take(&mut sample.names);
        check(&sample, "1", true, false);
        sample.names = unnamed;
        let blind = Reading { cgroups: None, ..(*sample.reading).clone() };
        sample.reading = Arc::new(blind);
        check(&sample, "1", true, false);
        sample.reading = Arc::new(Reading::empty(sample.taken));
        check(&sample, "1", false, false);
    }

    #[test]
    fn a_reading_keeps_its_time_until_the_next() {
        let (metrics, mut sample) = fixture();
        let of_cgroups = |page: String| -> Vec<String> {
            page.lines().filter(|line| line.starts_with(['c', 'p'])).map(str::to_owned).collect()
        };
        let first = of_cgroups(metrics.render(&sample));
        assert_eq!(first.len(), 12);
        for _ in 0..5 {
            sample.taken += Duration::from_micros(300_700);
            sample.at = metrics.clock.at(sample.taken);
            sample.reading = Arc::new(Reading { at: sample.taken, ..(*sample.reading).clone() });
            assert_eq!(of_cgroups(metrics.render(&sample)), first);
        }
    }
}
