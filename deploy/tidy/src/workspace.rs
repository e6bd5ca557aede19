//! The tree as git and cargo see it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use cargo_metadata::{Metadata, MetadataCommand};
use toml::Table;

use crate::arrows::Package;
use crate::source::SourceError;
use crate::trees::Guard;
use crate::{Finding, Source, arrows, layout, manifest, marks, modules, tokens, trees};

/// The tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// A program that the checks need did not do its work.
    #[error("`{command}` failed: {output}; the checks need a git checkout, git and cargo")]
    Program {
        /// The command line.
        command: String,
        /// What it said.
        output: String,
    },
    /// A file that git lists cannot be read.
    #[error("{path}: {cause}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        cause: std::io::Error,
    },
    /// Cargo does not understand the workspace.
    #[error(transparent)]
    Metadata(#[from] cargo_metadata::Error),
    /// A Rust file does not parse.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A manifest does not parse.
    #[error("{path}: {cause}")]
    Manifest {
        /// Which manifest.
        path: String,
        /// Why.
        cause: toml::de::Error,
    },
}

/// The files of the tree (tracked, and new ones that git does not ignore), with their text.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    /// Text files by path; other files are listed in `paths` alone.
    pub texts: BTreeMap<String, String>,
    /// Every file.
    pub paths: Vec<String>,
}

impl Workspace {
    /// Reads the workspace that this package is part of.
    ///
    /// # Errors
    /// When git is not there, or a file cannot be read.
    pub fn open() -> Result<Self, WorkspaceError> {
        let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).components().collect();
        let root = root.ancestors().nth(2).map(Path::to_path_buf).unwrap_or(root);
        let mut git = Command::new("git");
        git.args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"]).current_dir(&root);
        let listed = output_of(&mut git)?;
        let mut workspace = Self { root, texts: BTreeMap::new(), paths: Vec::new() };
        let paths: BTreeSet<&str> = listed.split('\0').filter(|path| !path.is_empty()).collect();
        for path in paths {
            workspace.read(path)?;
        }
        Ok(workspace)
    }

    /// Reads one file; one that was deleted and not yet committed is passed over.
    fn read(&mut self, path: &str) -> Result<(), WorkspaceError> {
        let bytes = match std::fs::read(self.root.join(path)) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(WorkspaceError::Read { path: path.to_owned(), cause }),
        };
        self.paths.push(path.to_owned());
        if let Ok(text) = String::from_utf8(bytes) {
            self.texts.insert(path.to_owned(), text);
        }
        Ok(())
    }

    /// Every Rust file, parsed.
    ///
    /// # Errors
    /// At the first file that does not parse.
    pub fn sources(&self) -> Result<Vec<Source>, WorkspaceError> {
        let rust = self.texts.iter().filter(|(path, _)| path.ends_with(".rs"));
        Ok(rust.map(|(path, text)| Source::parse(path, text)).collect::<Result<_, _>>()?)
    }

    /// Files at places where they do not belong.
    pub fn misplaced(&self) -> Vec<Finding> {
        layout::misplaced(&self.paths.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Leftover marks in code, scripts and documents; data files may hold any word.
    pub fn leftovers(&self) -> Vec<Finding> {
        let read_by_people =
            |path: &str| ![".lock", ".txt", ".json", ".jsonl"].iter().any(|end| path.ends_with(end));
        self.texts
            .iter()
            .filter(|(path, _)| read_by_people(path))
            .flat_map(|(path, text)| marks::leftovers(path, text))
            .collect()
    }

    /// Words that stay out of every text file.
    pub fn forbidden_words(&self) -> Vec<Finding> {
        let texts = self.texts.iter().filter(|(path, _)| *path != "Cargo.lock");
        texts.flat_map(|(path, text)| marks::forbidden_words(path, text)).collect()
    }

    /// Manifests that do not take from the root what they should.
    ///
    /// # Errors
    /// When a manifest does not parse.
    pub fn stray_manifests(&self) -> Result<Vec<Finding>, WorkspaceError> {
        let members = self.manifests()?.into_iter().filter(|(path, _)| path != "Cargo.toml");
        Ok(members.flat_map(|(path, manifest)| manifest::strays(&path, &manifest)).collect())
    }

    /// Dependencies that nothing uses.
    ///
    /// # Errors
    /// When a manifest or a source does not parse.
    pub fn unused_dependencies(&self) -> Result<Vec<Finding>, WorkspaceError> {
        let sources = self.sources()?;
        let manifests = self.manifests()?;
        let folders: Vec<&str> =
            manifests.iter().filter_map(|(path, _)| path.strip_suffix("Cargo.toml")).collect();
        // A file belongs to the package with the longest matching folder: packages may nest.
        let home = |source: &&Source, folder: &str| {
            let best =
                folders.iter().filter(|one| source.path.starts_with(**one)).max_by_key(|one| one.len());
            best == Some(&folder)
        };
        let (root, members): (Vec<_>, Vec<_>) = manifests.iter().partition(|(path, _)| path == "Cargo.toml");
        let mut findings = Vec::new();
        for (path, manifest) in &members {
            let folder = path.strip_suffix("Cargo.toml").unwrap_or_default();
            let words =
                sources.iter().filter(|source| home(source, folder)).flat_map(tokens::words).collect();
            findings.extend(manifest::unused(path, manifest, &words));
        }
        let members: Vec<_> = members.iter().map(|(_, manifest)| manifest.clone()).collect();
        findings.extend(root.iter().flat_map(|(_, root)| manifest::unclaimed(root, &members)));
        Ok(findings)
    }

    fn manifests(&self) -> Result<Vec<(String, Table)>, WorkspaceError> {
        let manifests =
            self.texts.iter().filter(|(path, _)| path.split('/').next_back() == Some("Cargo.toml"));
        let parsed = manifests.map(|(path, text)| match text.parse() {
            Ok(table) => Ok((path.clone(), table)),
            Err(cause) => Err(WorkspaceError::Manifest { path: path.clone(), cause }),
        });
        parsed.collect()
    }

    /// Arrows between our crates that are not drawn.
    ///
    /// # Errors
    /// When cargo does not understand the workspace.
    pub fn forbidden_arrows(&self) -> Result<Vec<Finding>, WorkspaceError> {
        let metadata = self.metadata()?;
        let ours: BTreeSet<String> =
            metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
        let packages: Vec<Package> = metadata
            .workspace_packages()
            .iter()
            .map(|package| Package {
                name: package.name.to_string(),
                uses: package
                    .dependencies
                    .iter()
                    .map(|d| d.name.clone())
                    .filter(|name| ours.contains(name))
                    .collect(),
            })
            .collect();
        Ok(arrows::forbidden(&packages))
    }

    /// Foreign crates in trees where they may not be.
    ///
    /// # Errors
    /// When `cargo tree` fails.
    pub fn forbidden_crates(&self) -> Result<Vec<Finding>, WorkspaceError> {
        let mut findings = Vec::new();
        for guard in trees::GUARDS {
            findings.extend(trees::forbidden(guard, &self.tree(guard)?));
        }
        Ok(findings)
    }

    fn tree(&self, guard: &Guard) -> Result<String, WorkspaceError> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["tree", "--package", guard.package, "--edges", guard.edges, "--prefix", "none"]);
        output_of(cargo.current_dir(&self.root))
    }

    /// Rust files that no target compiles.
    ///
    /// # Errors
    /// When cargo does not understand the workspace, or a file does not parse.
    pub fn dead_files(&self) -> Result<Vec<Finding>, WorkspaceError> {
        let metadata = self.metadata()?;
        let roots: Vec<String> = metadata
            .workspace_packages()
            .iter()
            .flat_map(|package| &package.targets)
            .filter_map(|target| target.src_path.as_std_path().strip_prefix(&self.root).ok())
            .filter_map(|path| path.to_str().map(str::to_owned))
            .collect();
        let sources = self.sources()?;
        let by_path = sources.iter().map(|source| (source.path.as_str(), source)).collect();
        Ok(modules::unreached(&roots.iter().map(String::as_str).collect::<Vec<_>>(), &by_path))
    }

    fn metadata(&self) -> Result<Metadata, WorkspaceError> {
        Ok(MetadataCommand::new().current_dir(&self.root).no_deps().exec()?)
    }
}

fn output_of(command: &mut Command) -> Result<String, WorkspaceError> {
    let failed = |command: &Command, output: String| WorkspaceError::Program {
        command: format!("{command:?}"),
        output,
    };
    match command.output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(failed(command, String::from_utf8_lossy(&output.stderr).into_owned())),
        Err(cause) => Err(failed(command, cause.to_string())),
    }
}
