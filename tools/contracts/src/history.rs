//! The released files in the history of the repository: what any commit had must still be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

/// Environment variables with which a git hook selects its repository. Their paths are relative to another folder.
pub const HOOK_VARIABLES: [&str; 3] = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"];

/// Contents of released files that a commit has, and that were replaced before a deployment published them: the schema
/// and the id of the git object. Each is an exception to the rule that a released file stays.
pub const WITHDRAWN: &[(&str, &str)] = &[
    // Committed in 3be8482 and replaced in 1375aca, 49 minutes later: the type of a CloudEvent allowed spaces.
    ("CloudEvent", "ec9aab5b7909c4bd1d376f93bf4cf1f64f267683"),
];

/// The contents of a schema's released files: its name, and the id of the git object.
type Content = (String, String);

/// The released files in the commits before and in HEAD, and in the working tree.
pub struct History {
    /// The first commit that has the content, and the path there.
    committed: BTreeMap<Content, (String, String)>,
    /// The contents of the working tree by path.
    present: BTreeMap<String, Content>,
}

impl History {
    /// Reads the history of `<folder>/released`. `paths` are the files that are there now.
    ///
    /// # Errors
    /// Fails if the history is not complete, or can't be read: a check that was not done must not count as passed.
    pub fn read<'a>(
        folder: &Path,
        paths: impl Iterator<Item = &'a String>,
    ) -> Result<Self, String> {
        if git(folder, &["rev-parse", "--is-shallow-repository"])?.trim() != "false" {
            return Err("the clone is shallow; run `git fetch --unshallow` (in a workflow, set \
                        `fetch-depth: 0` of actions/checkout)"
                .to_owned());
        }
        let committed = committed(folder)?;
        if committed.is_empty() {
            return Err(format!("no commit has a file in {}/released", folder.display()));
        }
        let paths: Vec<_> = paths.collect();
        let files: Vec<_> = paths.iter().map(|path| format!("released/{path}")).collect();
        let mut arguments = vec!["hash-object", "--no-filters", "--"];
        arguments.extend(files.iter().map(String::as_str));
        let ids = git(folder, &arguments)?;
        let contents = paths.into_iter().zip(ids.lines());
        let present =
            contents.map(|(path, id)| (path.clone(), (schema(path).to_owned(), id.to_owned())));
        Ok(Self { committed, present: present.collect() })
    }

    /// Returns whether a commit has this file of the working tree.
    pub fn has(&self, path: &str) -> bool {
        self.present.get(path).is_some_and(|content| self.committed.contains_key(content))
    }

    /// Returns the contents that a commit has and the working tree does not, except those in `withdrawn`. The number of
    /// a file may change: two branches may have added the same one.
    pub fn lost(&self, withdrawn: &[(&str, &str)]) -> Vec<String> {
        let present: BTreeSet<&Content> = self.present.values().collect();
        let lost = self.committed.iter().filter(|(content, _)| {
            let (name, id) = content;
            !present.contains(content) && !withdrawn.contains(&(name.as_str(), id.as_str()))
        });
        let lost = lost.map(|(_, (commit, path))| {
            format!(
                "{path} of commit {commit} was changed or removed; a released schema must stay. Restore it with `git \
                 checkout {commit} -- released/{path}` in shared/contracts, or under the next free number, and run \
                 `make release-schemas`. If the commit has not landed, you may amend or squash it instead"
            )
        });
        lost.collect()
    }
}

/// Returns the name of the schema of a released file.
pub fn schema(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

/// Returns the contents that the commits before and in HEAD gave to the released files.
///
/// `--full-history`: otherwise git may omit a branch whose changes its merge dropped. `--diff-merges=separate`:
/// otherwise git omits what only a merge changed.
fn committed(folder: &Path) -> Result<BTreeMap<Content, (String, String)>, String> {
    let log = git(
        folder,
        &[
            "log",
            "--full-history",
            "--diff-merges=separate",
            "--raw",
            "--no-abbrev",
            "--no-renames",
            "--no-color",
            "--no-show-signature",
            "--relative",
            "--format=%H",
            "HEAD",
            "--",
            "released",
        ],
    )?;
    let (mut committed, mut commit) = (BTreeMap::new(), "");
    for line in log.lines() {
        // `:<old mode> <new mode> <old id> <new id> <status>\t<path>`
        let Some((change, path)) = line.strip_prefix(':').and_then(|line| line.split_once('\t'))
        else {
            commit = if line.is_empty() { commit } else { line };
            continue;
        };
        let path = path.strip_prefix("released/").filter(|path| path.contains('/'));
        let id = change.split(' ').nth(3).filter(|id| id.contains(|digit| digit != '0'));
        if let (Some(path), Some(id)) = (path, id) {
            // The newest commit is first, so the first commit that has the content stays.
            let content = (schema(path).to_owned(), id.to_owned());
            committed.insert(content, (commit.to_owned(), path.to_owned()));
        }
    }
    Ok(committed)
}

/// Runs git in a folder. Returns its output.
fn git(folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("git");
    for variable in HOOK_VARIABLES {
        command.env_remove(variable);
    }
    let output = command.arg("-C").arg(folder).args(arguments).output();
    let output = output.map_err(|error| format!("git can't be started: {error}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        return Err(format!("git {} failed: {}", arguments[0], error.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
