//! XIDs in the kernel's log: NVIDIA's driver writes each there, one line an event, even when NVML hangs.
//! From the moment of opening on; what was logged before belongs to a time that nobody asks about.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::Error;
use super::gpu::PciAddress;

/// The longest record (`kernel/printk/internal.h`, `PRINTK_MESSAGE_MAX` and what comes before the text); a shorter
/// buffer is refused.
const RECORD: usize = 8192;
/// How many reads one call makes: a log that grows faster than this is read on next time.
const READS: usize = 4096;
/// Of a file that is no log; a line ends long before.
const LONGEST_LINE: usize = 1 << 16;

#[derive(Debug)]
pub struct Kmsg {
    path: PathBuf,
    file: Option<File>,
    /// The beginning of a line.
    partial: Vec<u8>,
}

/// What came since the call before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    pub xids: Vec<LoggedXid>,
    /// How often the kernel overwrote records that were not read yet.
    pub overruns: u64,
}

/// `NVRM: Xid (PCI:0000:3b:00): 79, pid=4242, name=python3, …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedXid {
    pub pci: PciAddress,
    pub xid: u32,
    /// Whose work it was, if the driver knows.
    pub pid: Option<u32>,
    pub process: Option<String>,
}

impl Kmsg {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None, partial: Vec::new() }
    }

    /// Opens the log while we may: rights to it are asked for then, and not with each read. A failure shows when it is
    /// read.
    pub fn open(&mut self) {
        if self.file.is_none() {
            self.file = open(&self.path).ok();
        }
    }

    /// Never waits. After a failure the log is opened anew next time.
    pub fn read(&mut self) -> Result<News, Error> {
        let mut news = News::default();
        match self.fill(&mut news) {
            Ok(()) => Ok(news),
            Err(source) => {
                self.file = None;
                Err(Error::Read { path: self.path.clone(), source })
            }
        }
    }

    pub fn overrun(&self, count: u64) -> Error {
        Error::Overrun { path: self.path.clone(), count }
    }

    fn fill(&mut self, news: &mut News) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                self.partial.clear();
                self.file.insert(open(&self.path)?)
            }
        };
        let mut buffer = [0; RECORD];
        for _ in 0..READS {
            match file.read(&mut buffer) {
                // The end of a file or pipe; the kernel's own has none.
                Ok(0) => break,
                Ok(length) => take(&mut self.partial, &buffer[..length], &mut news.xids),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::BrokenPipe => news.overruns += 1,
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    let mut file = super::open(path)?;
    match file.seek(SeekFrom::End(0)) {
        // A pipe has nothing before now.
        Err(error) if error.kind() != io::ErrorKind::NotSeekable => Err(error),
        _ => Ok(file),
    }
}

fn take(partial: &mut Vec<u8>, new: &[u8], xids: &mut Vec<LoggedXid>) {
    partial.extend_from_slice(new);
    let Some(end) = partial.iter().rposition(|byte| *byte == b'\n') else {
        if partial.len() > LONGEST_LINE {
            partial.clear();
        }
        return;
    };
    let rest = partial.split_off(end + 1);
    let lines = std::mem::replace(partial, rest);
    xids.extend(String::from_utf8_lossy(&lines).lines().filter_map(parse));
}

/// A record of `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`) that tells of an XID. Only the kernel's own: what
/// programs write there carries another facility.
pub fn parse(record: &str) -> Option<LoggedXid> {
    let (header, text) = record.split_once(';')?;
    let priority: u32 = header.split(',').next()?.parse().ok()?;
    let from_kernel = priority >> 3 == 0;
    let rest = text.strip_prefix("NVRM: Xid (").filter(|_| from_kernel)?;
    let (place, rest) = rest.split_once("): ")?;
    let place = place.strip_prefix("PCI:").unwrap_or(place);
    // In MIG mode the instance follows: `0000:3b:00 GPU-I:05`.
    let pci = place.split(' ').next()?.parse().ok()?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let value = |name: &str| {
        let (_, after) = rest.split_once(name)?;
        let value = after.split(',').next()?.trim().trim_matches('\'');
        (!value.is_empty() && value != "<unknown>").then_some(value)
    };
    Some(LoggedXid {
        pci,
        xid: rest[..digits].parse().ok()?,
        pid: value("pid=").and_then(|pid| pid.parse().ok()),
        process: value("name=").map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn logged(pci: &str, xid: u32, pid: Option<u32>, process: Option<&str>) -> LoggedXid {
        LoggedXid { pci: pci.parse().unwrap(), xid, pid, process: process.map(str::to_owned) }
    }

    #[test]
    fn every_form_of_the_driver_s_line_is_understood() {
        let check = |record, expected| assert_eq!(parse(record), Some(expected), "{record}");
        check(
            "4,1305,98765432,-;NVRM: Xid (PCI:0000:3b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            logged("0000:3b:00", 79, None, None),
        );
        check(
            "4,1,2,-;NVRM: Xid (PCI:0000:18:00): 31, pid=4242, name=python3, Ch 00000008, intr 10000000.",
            logged("0000:18:00", 31, Some(4242), Some("python3")),
        );
        check("4,1,2,-;NVRM: Xid (0000:86:00): 13, Graphics Exception", logged("0000:86:00", 13, None, None));
        check(
            "4,1,2,-;NVRM: Xid (PCI:0000:01:00 GPU-I:05): 43, pid=7, name=a",
            logged("0000:01:00", 43, Some(7), Some("a")),
        );
        check("4,1,2,-;NVRM: Xid (PCI:0000:01:00): 48", logged("0000:01:00", 48, None, None));
    }

    #[test]
    fn what_is_no_xid_of_the_kernel_s_is_left_out() {
        for record in [
            "",
            "NVRM: Xid (PCI:0000:3b:00): 79",
            "12,1,2,-;NVRM: Xid (PCI:0000:3b:00): 79, written by a program",
            "4,1,2,-;NVRM: GPU at PCI:0000:3b:00: GPU-1234",
            "4,1,2,-;NVRM: Xid (PCI:nonsense): 79",
            "4,1,2,-;NVRM: Xid (PCI:0000:3b:00): many",
            "4,1,2,-;NVRM: Xid (PCI:0000:3b:00): 99999999999",
            " SUBSYSTEM=pci",
        ] {
            assert_eq!(parse(record), None, "{record}");
        }
    }

    #[test]
    fn only_what_comes_after_opening_is_read_and_lines_may_come_in_pieces() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        writeln!(log, "4,1,2,-;NVRM: Xid (PCI:0000:01:00): 48").unwrap();
        let mut kmsg = Kmsg::new(log.path());
        assert_eq!(kmsg.read().unwrap(), News::default());
        write!(log, "4,2,3,-;NVRM: Xid (PCI:0000:01:00): 7").unwrap();
        assert_eq!(kmsg.read().unwrap(), News::default());
        writeln!(log, "9, pid=1, name=x\n6,3,4,-;something else").unwrap();
        assert_eq!(kmsg.read().unwrap().xids, [logged("0000:01:00", 79, Some(1), Some("x"))]);
        assert_eq!(kmsg.read().unwrap(), News::default());
    }

    #[test]
    fn a_log_that_is_missing_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut kmsg = Kmsg::new(dir.path().join("kmsg"));
        assert_eq!(kmsg.read().unwrap_err().kind(), "missing");
        std::fs::write(dir.path().join("kmsg"), "").unwrap();
        assert_eq!(kmsg.read().unwrap(), News::default());
    }

    proptest! {
        #[test]
        fn no_record_makes_the_parser_panic(record in "([0-9]{1,3},|;|NVRM: Xid \\(|PCI:|[0-9a-f:]{0,9}|\\): |pid=|name=|'|\\PC){0,20}") {
            let _any_answer = parse(&record);
        }

        #[test]
        fn it_does_not_matter_how_a_log_is_cut(
            lines in prop::collection::vec(prop::option::of(any::<u32>()), 0..20),
            cuts in prop::collection::vec(1..40_usize, 1..20),
        ) {
            let line = |xid: &Option<u32>| match xid {
                Some(xid) => format!("4,1,2,-;NVRM: Xid (PCI:0000:3b:00): {xid}, pid=1\n"),
                None => "6,1,2,-;something else\n SUBSYSTEM=pci\n".to_owned(),
            };
            let log: String = lines.iter().map(line).collect();
            let (mut partial, mut xids, mut rest) = (Vec::new(), Vec::new(), log.as_bytes());
            for cut in cuts.iter().cycle() {
                let (piece, others) = rest.split_at((*cut).min(rest.len()));
                take(&mut partial, piece, &mut xids);
                rest = others;
                if rest.is_empty() {
                    break;
                }
            }
            let found: Vec<_> = xids.iter().map(|found| found.xid).collect();
            prop_assert_eq!(found, lines.into_iter().flatten().collect::<Vec<_>>());
        }

        #[test]
        fn what_is_written_is_what_is_read(domain: u16, bus: u8, device in 0..32_u8, xid: u32, pid: u32) {
            let record = format!("4,1,2,-;NVRM: Xid (PCI:{domain:04x}:{bus:02x}:{device:02x}): {xid}, pid={pid}, name=x y, z");
            let pci = PciAddress { domain: domain.into(), bus, device };
            prop_assert_eq!(parse(&record), Some(LoggedXid { pci, xid, pid: Some(pid), process: Some("x y".into()) }));
        }
    }
}
