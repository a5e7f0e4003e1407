//! Recordings: lines by themselves, and played from a file.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use ebb_agent::replay::Replay;
use ebb_core::recording::Entry;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::text;

const INTERVAL: Duration = Duration::from_secs(1);

/// A line that is accepted is the same when it was written anew. A file is accepted when each line is; then time may
/// jump as it likes, and each line is what goes on until it ends.
pub fn target(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let entries: Option<Vec<Entry>> = text.lines().filter_map(Entry::parse).map(Result::ok).collect();
    for entry in entries.iter().flatten() {
        let again = Entry::parse(&entry.to_line()).expect("not blank").expect("our own line");
        assert_eq!((again.at, again.utilization), (entry.at, entry.utilization));
        // Written in milliseconds.
        assert_eq!(again.lasts.map(|lasts| lasts.as_millis()), entry.lasts.map(|lasts| lasts.as_millis()));
    }
    // The file is read by another splitter of lines than `lines`, which takes "\r\n" for one end: blanks are trimmed.
    let played = play(text);
    let entries = entries.filter(|entries| !entries.is_empty());
    assert_eq!(played.is_some(), entries.is_some());
    let (Some(mut replay), Some(entries)) = (played, entries) else { return };
    let mut begin = Duration::ZERO;
    for (index, entry) in entries.iter().enumerate() {
        let end = begin.saturating_add(entry.lasts.unwrap_or(INTERVAL));
        if end > begin || index + 1 == entries.len() {
            let found = replay.at(begin).expect("was checked when it was opened");
            assert_eq!(found, entry.utilization, "line {index}, from {begin:?}");
        }
        begin = end;
    }
    let last = entries.last().expect("not empty").utilization;
    assert_eq!(replay.at(Duration::MAX).expect("was checked when it was opened"), last);
}

fn play(text: &str) -> Option<Replay> {
    let mut file = File::from(memfd_create("recording", MemfdFlags::CLOEXEC).expect("memory for a file"));
    file.write_all(text.as_bytes()).expect("it is in memory");
    Replay::open(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), INTERVAL).ok()
}
