//! One fuzz target for each reader of text from outside. `cargo xtask fuzz --help` says how to run them.
//! A target does not only wait for panics: it says what must hold of everything that the reader accepts.
#![no_main]

mod accept;
mod btf;
mod cgroup;
mod config;
mod gpu;
mod notice;
mod page;
mod proc;
mod recording;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// By name; `fuzz/seeds` has a folder for each.
const TARGETS: &[(&str, fn(&[u8]))] = &[
    ("accept", accept::target),
    ("btf", btf::target),
    ("btf-built", btf::built),
    ("cgroup-figures", cgroup::figures),
    ("cgroup-owner", cgroup::owner),
    ("cgroup-process", cgroup::process),
    ("config", config::target),
    ("kmsg", gpu::kmsg),
    ("meminfo", proc::meminfo),
    ("notice", notice::target),
    ("page", page::target),
    ("pressure", proc::pressure),
    ("recording", recording::target),
    ("schedstat", proc::schedstat),
    ("stat", proc::stat),
    ("xid-policy", gpu::xid_policy),
];

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("EBB_FUZZ_TARGET").unwrap_or_default();
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    target.unwrap_or_else(|| panic!("EBB_FUZZ_TARGET is `{name}`, none of {}", names.join(", "))).1
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));

/// Readers get text; that it must be UTF-8 is checked before them.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}
