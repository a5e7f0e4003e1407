//! The tree of cgroups: which there are, their CPU time and memory, and the id by which eBPF knows them.
//! Version 2 at the root of the mount, version 1 beside it (hybrid), or version 1 alone. How many are followed is
//! bounded; those nearest to the root come first.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use super::polled::Polled;
use super::{Error, Malformed};

/// What one cgroup has used. `None`: this cgroup, or this kernel, does not count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupUse {
    /// From the root of the tree, which is `/`.
    pub path: String,
    /// The inode of its folder in the version 2 hierarchy.
    pub id: Option<u64>,
    /// CPU time since it was made.
    pub cpu: Option<Duration>,
    /// Bytes charged to it, page cache and all.
    pub memory: Option<u64>,
    /// Those bytes without the page cache that was not touched lately: the kubelet's formula.
    pub memory_working_set: Option<u64>,
}

#[derive(Debug)]
pub struct Cgroups {
    /// Ordered by path.
    pub all: Vec<CgroupUse>,
    /// Whether none was left out, by the bound or for want of rights.
    pub complete: bool,
    /// What could not be read, but for what went away in between.
    pub errors: Vec<Error>,
}

#[derive(Debug)]
pub struct CgroupTree {
    root: PathBuf,
    max: usize,
    /// Empty until the mounts were found.
    hierarchies: Vec<Hierarchy>,
    entries: BTreeMap<String, Entry>,
    round: u64,
}

/// One mounted tree and what is read from it.
#[derive(Debug)]
struct Hierarchy {
    root: PathBuf,
    /// Whether its folders' inodes are the ids.
    identifies: bool,
    files: &'static [Figure],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    CpuStat,
    CpuacctUsage,
    MemoryCurrent,
    MemoryInactive,
    MemoryUsageV1,
    MemoryInactiveV1,
}

impl Figure {
    fn file(self) -> &'static str {
        match self {
            Self::CpuStat => "cpu.stat",
            Self::CpuacctUsage => "cpuacct.usage",
            Self::MemoryCurrent => "memory.current",
            Self::MemoryInactive | Self::MemoryInactiveV1 => "memory.stat",
            Self::MemoryUsageV1 => "memory.usage_in_bytes",
        }
    }

    fn parse(self, text: &str) -> Result<u64, Malformed> {
        match self {
            Self::CpuStat => keyed(text, "usage_usec"),
            Self::MemoryInactive => keyed(text, "inactive_file"),
            Self::MemoryInactiveV1 => keyed(text, "total_inactive_file"),
            Self::CpuacctUsage | Self::MemoryCurrent | Self::MemoryUsageV1 => {
                text.trim_end().parse().map_err(|_| Malformed("number"))
            }
        }
    }
}

#[derive(Debug, Default)]
struct Entry {
    id: Option<u64>,
    files: Vec<(Figure, Polled)>,
    /// The last round in which it was there.
    seen: u64,
}

impl Cgroups {
    /// Whether a cgroup that is not among them is gone: all were read, from the kernel's own root. A container's view
    /// may begin at its own cgroup, and the host's cgroups are none the less there.
    pub fn are_the_hosts(&self) -> bool {
        // The inode of the root of the version 2 hierarchy: the first that the kernel makes.
        const ROOT: u64 = 1;
        self.complete && self.all.first().is_some_and(|root| root.id == Some(ROOT))
    }
}

impl CgroupTree {
    pub fn new(root: &Path, max: usize) -> Self {
        Self { root: root.to_owned(), max, hierarchies: Vec::new(), entries: BTreeMap::new(), round: 0 }
    }

    pub fn read(&mut self, buffer: &mut Vec<u8>) -> Result<Cgroups, Error> {
        if self.hierarchies.is_empty() {
            self.hierarchies = hierarchies(&self.root);
        }
        if self.hierarchies.is_empty() {
            return Err(Error::NoCgroups { root: self.root.clone() });
        }
        self.round += 1;
        let mut complete = true;
        for hierarchy in &self.hierarchies {
            complete &= walk(hierarchy, &mut self.entries, self.max, self.round)?;
        }
        self.entries.retain(|_, entry| entry.seen == self.round);
        let mut errors = Vec::new();
        let all = self.entries.iter_mut().map(|(path, entry)| entry.read(path, buffer, &mut errors)).collect();
        Ok(Cgroups { all, complete, errors })
    }
}

impl Entry {
    fn read(&mut self, path: &str, buffer: &mut Vec<u8>, errors: &mut Vec<Error>) -> CgroupUse {
        let mut found = CgroupUse { path: path.to_owned(), id: self.id, ..CgroupUse::default() };
        let mut inactive = None;
        for (figure, file) in &mut self.files {
            let number = match file.read(buffer, |text| figure.parse(text)) {
                Ok(number) => Some(number),
                Err(error) => {
                    if !error.is_gone() {
                        errors.push(error);
                    }
                    None
                }
            };
            match figure {
                Figure::CpuStat => found.cpu = number.map(Duration::from_micros),
                Figure::CpuacctUsage => found.cpu = number.map(Duration::from_nanos),
                Figure::MemoryCurrent | Figure::MemoryUsageV1 => found.memory = number,
                Figure::MemoryInactive | Figure::MemoryInactiveV1 => inactive = number,
            }
        }
        found.memory_working_set = found.memory.zip(inactive).map(|(memory, inactive)| memory.saturating_sub(inactive));
        found
    }
}

fn hierarchies(root: &Path) -> Vec<Hierarchy> {
    let is_v2 = |folder: &Path| folder.join("cgroup.controllers").is_file();
    if is_v2(root) {
        let files = &[Figure::CpuStat, Figure::MemoryCurrent, Figure::MemoryInactive];
        return vec![Hierarchy { root: root.to_owned(), identifies: true, files }];
    }
    let mut found = Vec::new();
    let mut add = |folder: &str, marker: &str, identifies, files| {
        let folder = root.join(folder);
        if folder.join(marker).is_file() {
            found.push(Hierarchy { root: folder, identifies, files });
        }
    };
    add("unified", "cgroup.controllers", true, &[]);
    add("cpuacct", "cpuacct.usage", false, &[Figure::CpuacctUsage]);
    add("memory", "memory.usage_in_bytes", false, &[Figure::MemoryUsageV1, Figure::MemoryInactiveV1]);
    found
}

/// Marks what is there now; says whether none was left out. Breadth first, so that what is left out lies deep.
fn walk(hierarchy: &Hierarchy, entries: &mut BTreeMap<String, Entry>, max: usize, round: u64) -> Result<bool, Error> {
    let mut complete = true;
    let mut queue = VecDeque::from([String::from("/")]);
    while let Some(path) = queue.pop_front() {
        let folder = hierarchy.root.join(&path[1..]);
        let metadata = match fs::metadata(&folder) {
            Ok(metadata) => metadata,
            Err(source) if path == "/" => return Err(Error::Read { path: folder, source }),
            Err(error) => {
                // Gone since its parent was listed; or there, and not to be seen.
                complete &= error.kind() == io::ErrorKind::NotFound;
                continue;
            }
        };
        if entries.len() >= max && !entries.contains_key(&path) {
            complete = false;
            continue;
        }
        // A folder has a link from each folder in it: two links mean that there is none, which saves listing it.
        if metadata.nlink() != 2 {
            match fs::read_dir(&folder) {
                Ok(children) => {
                    let folders = children.flatten().filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()));
                    let parent = path.trim_end_matches('/');
                    queue.extend(folders.map(|child| format!("{parent}/{}", child.file_name().to_string_lossy())));
                }
                Err(error) => complete &= error.kind() == io::ErrorKind::NotFound,
            }
        }
        let entry = entries.entry(path).or_default();
        entry.seen = round;
        if hierarchy.identifies {
            entry.id = Some(metadata.ino());
        }
        for figure in hierarchy.files {
            if !entry.files.iter().any(|(known, _)| known == figure) {
                entry.files.push((*figure, Polled::new(folder.join(figure.file()))));
            }
        }
    }
    Ok(complete)
}

/// The number after a word at the start of a line.
fn keyed(text: &str, key: &'static str) -> Result<u64, Malformed> {
    let number = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    number.and_then(|number| number.parse().ok()).ok_or(Malformed(key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Writes a tree of files in a temporary folder.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    /// All but the ids, which no test can know beforehand.
    fn read(tree: &mut CgroupTree) -> Vec<CgroupUse> {
        let all = tree.read(&mut Vec::new()).unwrap().all;
        all.into_iter().map(|cgroup| CgroupUse { id: None, ..cgroup }).collect()
    }

    fn row(path: &str, cpu_nanos: Option<u64>, memory: Option<u64>, memory_working_set: Option<u64>) -> CgroupUse {
        let cpu = cpu_nanos.map(Duration::from_nanos);
        CgroupUse { path: path.into(), id: None, cpu, memory, memory_working_set }
    }

    #[test]
    fn version_2_is_read_from_one_tree() {
        let dir = tree(&[
            ("cgroup.controllers", "cpu memory\n"),
            ("cpu.stat", "usage_usec 5\nuser_usec 3\n"),
            ("kubepods.slice/cpu.stat", "usage_usec 2\n"),
            ("kubepods.slice/memory.current", "100\n"),
            ("kubepods.slice/memory.stat", "anon 1\ninactive_file 30\n"),
            ("kubepods.slice/a.scope/cpu.stat", "usage_usec 1\n"),
        ]);
        let mut cgroups = CgroupTree::new(dir.path(), 10);
        let expected = [
            row("/", Some(5000), None, None),
            row("/kubepods.slice", Some(2000), Some(100), Some(70)),
            row("/kubepods.slice/a.scope", Some(1000), None, None),
        ];
        assert_eq!(read(&mut cgroups), expected);
        let all = cgroups.read(&mut Vec::new()).unwrap().all;
        assert_eq!(all[1].id, Some(fs::metadata(dir.path().join("kubepods.slice")).unwrap().ino()));
    }

    #[test]
    fn the_trees_of_version_1_are_joined_by_path() {
        let dir = tree(&[
            ("unified/cgroup.controllers", "\n"),
            ("unified/pod/cgroup.procs", ""),
            ("cpuacct/cpuacct.usage", "9\n"),
            ("cpuacct/pod/cpuacct.usage", "7\n"),
            ("memory/memory.usage_in_bytes", "1000\n"),
            ("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 400\n"),
        ]);
        let mut cgroups = CgroupTree::new(dir.path(), 10);
        let expected = [row("/", Some(9), Some(1000), Some(600)), row("/pod", Some(7), None, None)];
        assert_eq!(read(&mut cgroups), expected);
        assert!(cgroups.read(&mut Vec::new()).unwrap().all.iter().all(|cgroup| cgroup.id.is_some()));
    }

    #[test]
    fn a_cgroup_that_went_away_is_no_error() {
        let dir =
            tree(&[("cgroup.controllers", ""), ("a/cpu.stat", "usage_usec 1\n"), ("b/cpu.stat", "usage_usec 2\n")]);
        let mut cgroups = CgroupTree::new(dir.path(), 10);
        assert_eq!(read(&mut cgroups).len(), 3);
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        let after = cgroups.read(&mut Vec::new()).unwrap();
        assert_eq!(after.all.iter().map(|cgroup| cgroup.path.as_str()).collect::<Vec<_>>(), ["/", "/b"]);
        assert!(after.errors.is_empty());
    }

    #[test]
    fn the_bound_leaves_out_what_lies_deep() {
        let dir = tree(&[("cgroup.controllers", ""), ("a/deep/x", ""), ("b/x", "")]);
        let mut cgroups = CgroupTree::new(dir.path(), 3);
        let found = cgroups.read(&mut Vec::new()).unwrap();
        assert_eq!(found.all.iter().map(|cgroup| cgroup.path.as_str()).collect::<Vec<_>>(), ["/", "/a", "/b"]);
        assert!(!found.complete);
    }

    #[test]
    fn a_broken_file_is_counted_and_the_others_are_read() {
        let dir =
            tree(&[("cgroup.controllers", ""), ("a/cpu.stat", "usage_usec many\n"), ("b/cpu.stat", "usage_usec 2\n")]);
        let found = CgroupTree::new(dir.path(), 10).read(&mut Vec::new()).unwrap();
        assert_eq!(found.errors.iter().map(Error::kind).collect::<Vec<_>>(), ["malformed"]);
        assert_eq!(found.all[1].cpu, None);
        assert_eq!(found.all[2].cpu, Some(Duration::from_micros(2)));
    }

    #[test]
    fn a_folder_without_cgroups_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(CgroupTree::new(dir.path(), 10).read(&mut Vec::new()).unwrap_err().kind(), "missing");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "(usage_usec|total_inactive_file|[0-9]{0,25}|[ \n]|\\PC){0,20}") {
            for figure in [Figure::CpuStat, Figure::CpuacctUsage, Figure::MemoryInactiveV1] {
                let _any_answer = figure.parse(&text);
            }
        }

        #[test]
        fn what_is_parsed_is_what_was_written(number in any::<u64>()) {
            prop_assert_eq!(Figure::CpuStat.parse(&format!("nr_periods 1\nusage_usec {number}\n")), Ok(number));
            prop_assert_eq!(Figure::CpuacctUsage.parse(&format!("{number}\n")), Ok(number));
        }
    }
}
