//! Where a checkpoint directory keeps its chat template, and the tokens a template may name.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use serde_json::{Map, Value};

use super::error::TemplateError;

const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Further templates beside the first, one file each, as `transformers` saves them.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// How many templates a checkpoint may have.
const TEMPLATES_MAX: usize = 64;

/// The files of a checkpoint that say how conversations are written: its chat templates and the
/// tokens that they may name. By file name inside the checkpoint directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateFiles(BTreeMap<String, Vec<u8>>);

/// What the files say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// By name: `default`, `tool_use` or any other. Each with the file it is from and its source.
    pub(super) templates: BTreeMap<String, (String, String)>,
    /// `bos_token`, `eos_token` and so on, as templates see them.
    pub(super) special_tokens: Map<String, Value>,
}

impl TemplateFiles {
    /// Far above any real one: the largest list every added token of a large vocabulary.
    pub const FILE_BYTES_MAX: u64 = 32 << 20;

    /// Reads those that a checkpoint directory has, perhaps none.
    ///
    /// # Errors
    /// A file that is there cannot be read.
    pub fn read(dir: &Path) -> Result<Self, TemplateError> {
        let more = dir.join(MORE_TEMPLATES);
        let entries = match std::fs::read_dir(&more) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            entries => Some(entries.map_err(|source| TemplateError::Read { path: more, source })?),
        };
        let entries = entries.into_iter().flatten().filter_map(Result::ok);
        let more = entries
            .filter_map(|entry| Some(format!("{MORE_TEMPLATES}/{}", entry.file_name().to_str()?)));
        let names = [CONFIG_FILE, TEMPLATE_FILE].map(str::to_owned).into_iter().chain(more);
        let mut files = BTreeMap::new();
        for name in names.filter(|name| Self::has_place_for(name)).take(TEMPLATES_MAX) {
            if let Some(contents) = read(&dir.join(&name))? {
                files.insert(name, contents);
            }
        }
        Ok(Self(files))
    }

    /// Whether a file of this name can be one of them. No such name leads out of a directory.
    #[must_use]
    pub fn has_place_for(name: &str) -> bool {
        let inside = name.strip_prefix(MORE_TEMPLATES).and_then(|rest| rest.strip_prefix('/'));
        let stem = inside.and_then(|file| file.strip_suffix(".jinja")).unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        [CONFIG_FILE, TEMPLATE_FILE].contains(&name)
            || (!stem.is_empty() && stem.chars().all(plain))
    }

    /// Names and contents, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, contents)| (name.as_str(), contents.as_slice()))
    }
}

impl FromIterator<(String, Vec<u8>)> for TemplateFiles {
    /// Leaves out files that have no place among them.
    fn from_iter<I: IntoIterator<Item = (String, Vec<u8>)>>(files: I) -> Self {
        Self(files.into_iter().filter(|(name, _)| Self::has_place_for(name)).collect())
    }
}

/// What `transformers` would find: a `chat_template.jinja` goes before `tokenizer_config.json`.
pub(super) fn find(files: &TemplateFiles) -> Result<Found, TemplateError> {
    let mut found = Found::default();
    if let Some(contents) = files.0.get(CONFIG_FILE) {
        let config: Value = serde_json::from_slice(contents).map_err(|e| {
            TemplateError::Config { file: CONFIG_FILE.into(), reason: e.to_string() }
        })?;
        found.special_tokens = special_tokens(&config);
        found.templates = templates_of_config(&config)?;
    }
    if let Some(contents) = files.0.get(TEMPLATE_FILE) {
        found.templates = additional(files)?;
        let source = text(TEMPLATE_FILE, contents)?;
        found.templates.insert("default".into(), (TEMPLATE_FILE.into(), source));
    }
    Ok(found)
}

/// The contents of a file, or none if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TemplateError> {
    let failed = |source| TemplateError::Read { path: path.to_path_buf(), source };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut contents = Vec::new();
    let limit = TemplateFiles::FILE_BYTES_MAX;
    file.take(limit + 1).read_to_end(&mut contents).map_err(failed)?;
    if contents.len() as u64 > limit {
        return Err(TemplateError::TooLarge {
            what: path.display().to_string(),
            limit: limit as usize,
            remedy: "no tokenizer or template needs that much",
        });
    }
    Ok(Some(contents))
}

fn text(file: &str, contents: &[u8]) -> Result<String, TemplateError> {
    String::from_utf8(contents.to_vec()).map_err(|e| TemplateError::Config {
        file: file.to_owned(),
        reason: format!("is not UTF-8 ({e})"),
    })
}

/// `chat_template` is a text, or a list of `{"name": ..., "template": ...}`.
fn templates_of_config(
    config: &Value,
) -> Result<BTreeMap<String, (String, String)>, TemplateError> {
    let malformed = |reason: String| TemplateError::Config { file: CONFIG_FILE.into(), reason };
    let mut templates = BTreeMap::new();
    match config.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => {
            templates.insert("default".to_owned(), (CONFIG_FILE.to_owned(), source.clone()));
        }
        Some(Value::Array(list)) if list.len() <= TEMPLATES_MAX => {
            for (index, entry) in list.iter().enumerate() {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                let (Some(name), Some(source)) = (text("name"), text("template")) else {
                    let reason = "needs a text for `name` and for `template`";
                    return Err(malformed(format!("chat_template[{index}] {reason}")));
                };
                let file = format!("{CONFIG_FILE} (chat_template {name:?})");
                templates.insert(name, (file, source));
            }
        }
        Some(Value::Array(list)) => {
            let reason =
                format!("chat_template has {} entries, the limit is {TEMPLATES_MAX}", list.len());
            return Err(malformed(reason));
        }
        Some(_) => {
            let reason = "chat_template has to be a text or a list of {name, template}";
            return Err(malformed(reason.to_owned()));
        }
    }
    Ok(templates)
}

fn additional(files: &TemplateFiles) -> Result<BTreeMap<String, (String, String)>, TemplateError> {
    let more = files.0.iter().filter_map(|(file, contents)| {
        let name = file.strip_prefix(MORE_TEMPLATES)?.strip_prefix('/')?.strip_suffix(".jinja")?;
        Some((name.to_owned(), file, contents))
    });
    more.map(|(name, file, contents)| Ok((name, (file.clone(), text(file, contents)?)))).collect()
}

/// Every `..._token` that is set, a text or an object with its `content`.
fn special_tokens(config: &Value) -> Map<String, Value> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(key, _)| key.ends_with("_token"))
        .filter_map(|(key, token)| {
            let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
            Some((key.clone(), Value::from(text)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Found, TemplateFiles, find};

    /// A checkpoint directory with these files.
    fn found(files: &[(&str, &str)]) -> Result<Found, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let read = TemplateFiles::read(dir.path()).and_then(|files| find(&files));
        read.map_err(|error| error.to_string())
    }

    fn names(found: &Found) -> Vec<(&str, &str)> {
        found.templates.iter().map(|(name, (_, source))| (&**name, &**source)).collect()
    }

    #[test]
    fn a_file_goes_before_the_config() {
        let config = r#"{"chat_template": "config", "eos_token": {"content": "<e>"}, "bos_token": "<b>",
            "pad_token": null, "add_bos_token": false}"#;
        let config_only = found(&[("tokenizer_config.json", config)]).unwrap();
        assert_eq!(names(&config_only), [("default", "config")]);
        let tokens = json!({"eos_token": "<e>", "bos_token": "<b>"});
        assert_eq!(Value::Object(config_only.special_tokens), tokens);
        let both = [
            ("tokenizer_config.json", config),
            ("chat_template.jinja", "file"),
            ("additional_chat_templates/tool_use.jinja", "tools"),
        ];
        assert_eq!(names(&found(&both).unwrap()), [("default", "file"), ("tool_use", "tools")]);
    }

    #[test]
    fn a_list_of_templates_keeps_their_names() {
        let config = r#"{"chat_template": [{"name": "tool_use", "template": "t"},
            {"name": "default", "template": "d"}]}"#;
        let found = found(&[("tokenizer_config.json", config)]).unwrap();
        assert_eq!(names(&found), [("default", "d"), ("tool_use", "t")]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (config, words) in [
            ("{", "tokenizer_config.json: EOF"),
            ("{\"chat_template\": 3}", "a text or a list"),
            ("{\"chat_template\": [{\"name\": \"x\"}]}", "chat_template[0]"),
        ] {
            let error = found(&[("tokenizer_config.json", config)]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        for silent in ["{}", "[]", "{\"chat_template\": null}"] {
            assert!(found(&[("tokenizer_config.json", silent)]).unwrap().templates.is_empty());
        }
    }

    #[test]
    fn only_files_of_templates_are_taken() {
        let names = ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"];
        let others = [
            "config.json",
            "additional_chat_templates/../x.jinja",
            "additional_chat_templates/.jinja",
            "additional_chat_templates/a.txt",
            "/etc/passwd",
            "../chat_template.jinja",
        ];
        let files = names.iter().chain(&others).map(|name| ((*name).to_owned(), Vec::new()));
        let kept = TemplateFiles::from_iter(files);
        assert_eq!(kept.iter().map(|(name, _)| name).collect::<Vec<_>>(), [names[1], names[0]]);
    }
}
