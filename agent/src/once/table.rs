//! A sample for people: what the node is, then what that rests on, and what could not be seen.

use std::fmt::Write;

use ebb_core::classify::GpuUse;
use ebb_core::units::Permille;

use crate::metrics::levels;
use crate::snapshot::Snapshot;

/// Busiest cgroups shown; all are in the JSON.
const CGROUPS: usize = 15;
/// As wide as a small terminal lets paths be.
const PATH_WIDTH: usize = 56;

pub(super) fn print(snapshot: &Snapshot) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _always_ok = write(&mut out, snapshot);
    out
}

fn write(out: &mut String, snapshot: &Snapshot) -> std::fmt::Result {
    writeln!(out, "{:<16}{}: {}", "class", snapshot.class.name(), snapshot.because)?;
    writeln!(out, "{:<16}{}, over {:.1} s", "sampled", snapshot.sampled_at, snapshot.interval_seconds)?;

    heading(out, "SIGNAL", &["USE"])?;
    for (signal, level) in levels(&snapshot.utilization_permille) {
        let level = match (signal, snapshot.utilization_permille.gpu) {
            ("gpu", GpuUse::Absent) => "no GPU".to_owned(),
            _ => level.map_or("unknown".to_owned(), |level| level.to_string()),
        };
        row(out, signal, &[level])?;
    }

    writeln!(out)?;
    cpu_row(out, "CPU", ["BUSY", "USER", "SYSTEM", "IRQ", "STEAL", "IOWAIT", "IDLE"])?;
    for cpu in snapshot.node_cpu.iter().chain(&snapshot.cpus) {
        let modes = |modes: &[&str]| share(Some(modes.iter().map(|mode| cpu.modes_permille[mode]).sum()));
        let name = cpu.cpu.map_or("node".to_owned(), |number| number.to_string());
        let shares = [&["user", "nice"][..], &["system"], &["irq", "softirq"], &["steal"], &["iowait"], &["idle"]];
        let [user, system, irq, steal, iowait, idle] = shares.map(modes);
        cpu_row(out, &name, [share(Some(cpu.busy_permille)), user, system, irq, steal, iowait, idle])?;
    }

    if let Some(memory) = &snapshot.memory {
        heading(out, "MEMORY", &["TOTAL", "WORKING SET", "AVAILABLE", "FREE"])?;
        let figures = [memory.total_bytes, memory.working_set_bytes, memory.available_bytes, memory.free_bytes];
        row(out, "node", &figures.map(|bytes| size(Some(bytes))))?;
    }

    heading(out, "PRESSURE", &["SOME", "FULL"])?;
    for (resource, stalled) in &snapshot.pressure {
        row(out, resource, &[share(stalled.some_permille), share(stalled.full_permille)])?;
    }

    if !snapshot.gpus.is_empty() {
        let line = |columns: [&str; 6]| {
            let [busy, highest, active, memory, power, verdict] = columns;
            format!("{busy:>12}{highest:>12}{active:>12}{memory:>12}{power:>12}  {verdict}")
        };
        let columns = ["BUSY", "HIGHEST", "SM ACTIVE", "MEMORY", "POWER", "VERDICT"];
        writeln!(out, "\n{:<10}{}", "GPU", line(columns))?;
        for gpu in &snapshot.gpus {
            let [busy, highest] = [gpu.busy_permille, gpu.busy_max_permille].map(share);
            let (active, memory) = (share(gpu.part.sm_active_permille), size(gpu.part.memory_used_bytes));
            let power = gpu.power_watts.map_or("-".to_owned(), |power| format!("{power:.0} W"));
            let verdict = gpu.verdict.unwrap_or("-");
            let columns = [&*busy, &highest, &active, &memory, &power, verdict];
            writeln!(out, "{:<10}{}", gpu.index, line(columns))?;
        }
    }

    writeln!(out, "\n{:>8} {:>8} {:>10} {:>11}  CGROUP", "CPUS", "WAITING", "SWITCHES/S", "WORKING SET")?;
    for cgroup in snapshot.cgroups.iter().take(CGROUPS) {
        let number = |number: Option<f64>, digits| number.map_or("-".to_owned(), |number| format!("{number:.digits$}"));
        writeln!(
            out,
            "{:>8} {:>8} {:>10} {:>11}  {}",
            number(cgroup.cpu_cores, 3),
            number(cgroup.run_queue_cores, 3),
            number(cgroup.switches_per_second, 0),
            size(cgroup.memory_working_set_bytes),
            shortened(&cgroup.path),
        )?;
    }
    if let Some(more) = snapshot.cgroups.len().checked_sub(CGROUPS).filter(|more| *more > 0) {
        writeln!(out, "{:>41} {more} more: -o json", "")?;
    }

    writeln!(out, "\n{:<16}{:<6}{:>9}  WHY", "SOURCE", "STATE", "READ")?;
    for source in &snapshot.sources {
        let state = if source.up { "up" } else { "down" };
        let took = format!("{:.2} ms", source.read_seconds * 1000.0);
        let line = format!("{:<16}{state:<6}{took:>9}  {}", source.source, source.why.as_deref().unwrap_or_default());
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn heading(out: &mut String, name: &str, columns: &[&str]) -> std::fmt::Result {
    out.push('\n');
    row(out, name, columns)
}

fn row(out: &mut String, name: &str, columns: &[impl AsRef<str>]) -> std::fmt::Result {
    write!(out, "{name:<16}")?;
    for column in columns {
        write!(out, "{:>12}", column.as_ref())?;
    }
    out.push('\n');
    Ok(())
}

/// Narrower than `row`: seven columns are to fit a small terminal.
fn cpu_row(out: &mut String, name: &str, columns: [impl AsRef<str>; 7]) -> std::fmt::Result {
    write!(out, "{name:<16}")?;
    for column in columns {
        write!(out, "{:>8}", column.as_ref())?;
    }
    out.push('\n');
    Ok(())
}

fn share(permille: Option<u16>) -> String {
    permille.and_then(Permille::new).map_or("-".to_owned(), |share| share.to_string())
}

/// Binary units, three digits.
fn size(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return "-".to_owned() };
    let mut scaled = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if scaled < 1000.0 {
            let digits = usize::from(unit != "B" && scaled < 100.0);
            return format!("{scaled:.digits$} {unit}");
        }
        scaled /= 1024.0;
    }
    format!("{scaled:.1} TiB")
}

/// Ends tell paths apart: what is too long loses its middle. Control characters from outside are not printed.
fn shortened(path: &str) -> String {
    let path: Vec<char> = path.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    if path.len() <= PATH_WIDTH {
        return path.into_iter().collect();
    }
    let head = PATH_WIDTH / 3;
    let tail = PATH_WIDTH - head - 1;
    path[..head].iter().chain(['…'].iter()).chain(&path[path.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let check = |bytes, text| assert_eq!(size(Some(bytes)), text);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.0 KiB");
        check(150 << 10, "150 KiB");
        check(16 << 30, "16.0 GiB");
        check(3 << 40, "3.0 TiB");
        assert_eq!(size(None), "-");
    }

    #[test]
    fn long_paths_lose_their_middle() {
        let long = format!("/kubepods.slice/{}/end.scope", "x".repeat(100));
        let short = shortened(&long);
        assert_eq!(short.chars().count(), PATH_WIDTH);
        assert!(short.starts_with("/kubepods.slice/xx") && short.ends_with("/end.scope"), "{short}");
        assert_eq!(shortened("/a\u{1b}[2J"), "/a?[2J");
    }
}
