//! The metrics page: whatever a cgroup is called and has used, a scraper reads back what was put in, in both formats.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use ebb_agent::clock::Clock;
use ebb_agent::metrics::{Exposition, Page};
use ebb_agent::reading::Reading;
use ebb_agent::replay::Replay;
use ebb_agent::sampler::{Input, Sample, Sampler};
use ebb_agent::source::cgroup::{Cgroup, Cgroups, Figures, Memory};
use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::watch;

/// By name and labels.
type Series = BTreeMap<(String, Vec<(String, String)>), f64>;

struct Shown {
    samples: watch::Sender<Option<Arc<Sample>>>,
    page: Page,
}

static SHOWN: LazyLock<Shown> = LazyLock::new(|| {
    let (samples, latest) = watch::channel(None);
    Shown { samples, page: Page::new(latest, None) }
});

pub fn target(bytes: &[u8]) {
    let Ok(cgroups) = Vec::<(String, u64, u64)>::arbitrary(&mut Unstructured::new(bytes)) else { return };
    // A path stands once in a reading.
    let cgroups: BTreeMap<String, (u64, u64)> =
        cgroups.into_iter().map(|(path, nanos, bytes)| (path, (nanos, bytes))).collect();
    SHOWN.samples.send_replace(Some(Arc::new(sample(&cgroups))));
    let render = |exposition| SHOWN.page.render(exposition).expect("a text takes anything");
    let (open, classic) = (render(Exposition::OpenMetrics), render(Exposition::Classic));

    assert!(open.ends_with("\n# EOF\n"));
    let (open, classic) = (read(&open), read(&classic));
    for (path, (nanos, bytes)) in &cgroups {
        let labels = vec![("cgroup".to_owned(), path.clone())];
        for series in [&open, &classic] {
            let value = |name: &str| series.get(&(name.to_owned(), labels.clone())).copied();
            let seconds = Duration::from_nanos(*nanos).as_secs_f64();
            assert_eq!(value("ebb_cgroup_cpu_seconds_total"), Some(seconds), "{path:?}");
            assert_eq!(value("ebb_cgroup_memory_bytes"), Some(*bytes as f64), "{path:?}");
        }
    }
    assert!(open.keys().eq(classic.keys()));
}

fn sample(cgroups: &BTreeMap<String, (u64, u64)>) -> Sample {
    let mut file = File::from(memfd_create("recording", MemfdFlags::CLOEXEC).expect("memory for a file"));
    file.write_all(br#"{"utilization": {"gpu": "absent"}}"#).expect("it is in memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let replay = Replay::open(&path, Duration::from_secs(1)).expect("the line above is a recording");
    let mut sample = Sampler::new(Input::Replay(replay), Clock::start(), Default::default()).sample(Instant::now());
    let used = |(path, (nanos, bytes)): (&String, &(u64, u64))| Cgroup {
        path: path.as_str().into(),
        id: None,
        owner: None,
        appeared: None,
        figures: Figures {
            cpu: Some(Duration::from_nanos(*nanos)),
            memory: Memory { total: Some(*bytes), ..Memory::default() },
            ..Figures::default()
        },
        schedule: None,
        cuda_launches: None,
    };
    let at = Instant::now();
    let cgroups = Cgroups { at, all: cgroups.iter().map(used).collect(), complete: true, errors: Vec::new() };
    sample.reading = Arc::new(Reading { cgroups: Some(Arc::new(cgroups)), ..Reading::empty(at) });
    sample
}

/// Strict, and written from the formats' descriptions. Panics where a scraper would refuse the page.
fn read(page: &str) -> Series {
    let mut series = Series::new();
    for line in page.split_terminator('\n').filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a name, and what it has"));
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'), "{line:?}");
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => labels(rest),
            None => (Vec::new(), rest),
        };
        let value = value.strip_prefix(' ').expect("a space before the value");
        let value = value.parse().unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(series.insert((name.to_owned(), labels), value).is_none(), "twice: {line:?}");
    }
    series
}

/// Labels up to the closing brace, and what follows it.
fn labels(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut labels = Vec::new();
    loop {
        let (name, quoted) = rest.split_once("=\"").expect("a label with its value");
        let mut value = String::new();
        let mut characters = quoted.chars();
        loop {
            match characters.next().expect("a closing quote") {
                '"' => break,
                '\\' => value.push(match characters.next() {
                    Some('n') => '\n',
                    Some(escaped @ ('"' | '\\')) => escaped,
                    other => panic!("escaped: {other:?}"),
                }),
                other => value.push(other),
            }
        }
        labels.push((name.to_owned(), value));
        rest = characters.as_str();
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return (labels, rest.strip_prefix('}').expect("a closing brace")),
        }
    }
}
