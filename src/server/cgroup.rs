//! The memory limit of the process's cgroup, of either version: the lowest of its own and of those above it. Beyond it the kernel kills
//! the process.

use std::path::{Component, Path, PathBuf};

use crate::files;

/// The file with the process's cgroups.
const OWN_CGROUPS: &str = "/proc/self/cgroup";
/// Where cgroups are mounted by convention.
const ROOT: &str = "/sys/fs/cgroup";
/// Largest file that is read: a cgroup's path is shorter than a page, and there are some dozen of them.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// In version 1 no limit is a number, the largest multiple of a page below 2⁶³. Every number from this one on counts as no limit.
const UNLIMITED: u64 = 1 << 60;

/// A limit, and the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub bytes: u64,
    pub file: PathBuf,
}

/// The process's own limit; `None` if there is none, or if it cannot be read.
pub(super) fn memory_limit() -> Option<Limit> {
    memory_limit_of(Path::new(OWN_CGROUPS), Path::new(ROOT))
}

fn memory_limit_of(own_cgroups: &Path, root: &Path) -> Option<Limit> {
    let text = files::read_text(own_cgroups, FILE_BYTES_MAX).ok()?;
    let files = text
        .lines()
        .filter_map(|line| Hierarchy::parse(line, root))
        .flat_map(|it| it.files());
    let limits = files.filter_map(|file| {
        Some(Limit {
            bytes: limit_in(&file)?,
            file,
        })
    });
    limits.min_by_key(|limit| limit.bytes)
}

fn limit_in(file: &Path) -> Option<u64> {
    let text = files::read_text(file, FILE_BYTES_MAX).ok()?;
    // "max" is not a number.
    text.trim().parse().ok().filter(|&bytes| bytes < UNLIMITED)
}

/// The process's place in a tree of cgroups that can limit memory.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    root: PathBuf,
    /// Below the root.
    path: PathBuf,
    file: &'static str,
}

impl Hierarchy {
    /// Reads a line of `/proc/self/cgroup`: a number, controllers, and a path. `None` if the tree does not limit memory.
    fn parse(line: &str, root: &Path) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (root, file) = if number == "0" && controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers
            .split(',')
            .any(|controller| controller == "memory")
        {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        // A path out of the namespace, "/../…", cannot be seen from here. The limit of the namespace is at its root.
        let mut parts = Path::new(path).components();
        let is_within = parts.all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let path = if is_within {
            path.trim_start_matches('/').into()
        } else {
            PathBuf::new()
        };
        Some(Self { root, path, file })
    }

    /// The limit files of its own cgroup and of all above it. In a container its own may be at the root, whatever the path says.
    fn files(&self) -> Vec<PathBuf> {
        self.path
            .ancestors()
            .map(|path| self.root.join(path).join(self.file))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A tree of cgroups.
    struct Tree(TempDir);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for (path, text) in files {
                let path = tree.0.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            tree
        }

        /// The limit of a process in these cgroups, and the file it is in.
        fn limit(&self, own: &str) -> Option<(u64, String)> {
            let own_cgroups = self.0.path().join("own");
            fs::write(&own_cgroups, own).unwrap();
            let limit = memory_limit_of(&own_cgroups, self.0.path())?;
            Some((
                limit.bytes,
                limit
                    .file
                    .strip_prefix(self.0.path())
                    .unwrap()
                    .display()
                    .to_string(),
            ))
        }
    }

    fn found(bytes: u64, file: &str) -> Option<(u64, String)> {
        Some((bytes, file.to_owned()))
    }

    #[test]
    fn the_least_limit_on_the_way_to_the_root_counts() {
        let tree = Tree::new(&[
            ("system.slice/blobcast.service/memory.max", "5368709120\n"),
            ("system.slice/memory.max", "max\n"),
            ("other.slice/memory.max", "1\n"),
            ("small.slice/memory.max", "1048576\n"),
            ("small.slice/blobcast.service/memory.max", "2097152\n"),
        ]);
        let own = "system.slice/blobcast.service/memory.max";
        assert_eq!(
            tree.limit("0::/system.slice/blobcast.service\n"),
            found(5_368_709_120, own)
        );
        assert_eq!(
            tree.limit("0::/small.slice/blobcast.service\n"),
            found(1_048_576, "small.slice/memory.max")
        );
        assert_eq!(tree.limit("0::/system.slice\n"), None, "max");
        assert_eq!(tree.limit("0::/\n"), None, "no file");
    }

    #[test]
    fn in_a_container_its_own_cgroup_is_the_root() {
        let tree = Tree::new(&[("memory.max", "805306368\n")]);
        for own in ["0::/", "0::/../../kubepods/pod1", "0::/docker/1234"] {
            assert_eq!(tree.limit(own), found(805_306_368, "memory.max"), "{own}");
        }
    }

    #[test]
    fn version_1_has_a_tree_for_memory() {
        let tree = Tree::new(&[
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/a/b/memory.limit_in_bytes", "805306368\n"),
            ("cpu/a/memory.limit_in_bytes", "1\n"),
        ]);
        let lines = "9:name=systemd:/a\n4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n";
        assert_eq!(
            tree.limit(lines),
            found(805_306_368, "memory/a/b/memory.limit_in_bytes")
        );
        assert_eq!(
            tree.limit("4:cpuset,memory:/a/b\n").unwrap().0,
            805_306_368,
            "mounted together"
        );
        assert_eq!(tree.limit("4:memory:/a\n"), None, "the number for no limit");
    }

    #[test]
    fn of_both_versions_the_least_counts() {
        let tree = Tree::new(&[
            ("memory/a/memory.limit_in_bytes", "2097152"),
            ("a/memory.max", "1048576"),
        ]);
        assert_eq!(
            tree.limit("4:memory:/a\n0::/a\n"),
            found(1_048_576, "a/memory.max")
        );
        assert_eq!(
            tree.limit("4:memory:/a\n0::/b\n"),
            found(2_097_152, "memory/a/memory.limit_in_bytes")
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_limit() {
        let tree = Tree::new(&[
            ("empty/memory.max", ""),
            ("word/memory.max", "many"),
            ("negative/memory.max", "-1"),
            ("large/memory.max", "99999999999999999999999"),
            ("two/memory.max", "1 2"),
            ("directory/memory.max/file", "1"),
        ]);
        for own in [
            "empty",
            "word",
            "negative",
            "large",
            "two",
            "directory",
            "missing",
        ] {
            assert_eq!(tree.limit(&format!("0::/{own}\n")), None, "{own}");
        }
        fs::write(tree.0.path().join("memory.max"), [0xff, 0xfe]).unwrap();
        for own in ["", "\n", "nonsense", "0:", "0::", "::/", "0::/\n4:memory"] {
            assert_eq!(tree.limit(own), None, "{own:?}");
        }
        fs::write(tree.0.path().join("memory.max"), "0").unwrap();
        assert_eq!(
            tree.limit("0::/\n"),
            found(0, "memory.max"),
            "nothing is a limit, too"
        );
        assert_eq!(
            memory_limit_of(&tree.0.path().join("missing"), tree.0.path()),
            None
        );
    }

    #[test]
    fn the_largest_number_that_is_a_limit_is_one() {
        let tree = Tree::new(&[]);
        for (text, limit) in [
            ((UNLIMITED - 1).to_string(), Some(UNLIMITED - 1)),
            (UNLIMITED.to_string(), None),
        ] {
            fs::write(tree.0.path().join("memory.max"), text).unwrap();
            assert_eq!(tree.limit("0::/\n").map(|it| it.0), limit);
        }
    }
}
