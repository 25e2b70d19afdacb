//! Where a checkpoint directory keeps its chat template, and the tokens a template may name.

use std::{collections::BTreeMap, io::Read as _, path::Path};

use serde_json::{Map, Value};

use super::error::TemplateError;

const CONFIG_FILE: &str = "tokenizer_config.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// Further templates beside the first, one file each, as `transformers` saves them.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// Far above any real one: the largest list every added token of a large vocabulary.
const MAX_FILE_BYTES: u64 = 32 << 20;
/// How many templates a checkpoint may have.
const TEMPLATES_MAX: usize = 64;

/// What a checkpoint directory says about its chat template.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// By name: `default`, `tool_use` or any other. Each with the file it is from and its source.
    pub(super) templates: BTreeMap<String, (String, String)>,
    /// `bos_token`, `eos_token` and so on, as templates see them.
    pub(super) special_tokens: Map<String, Value>,
}

/// Looks where `transformers` looks: a `chat_template.jinja` goes before `tokenizer_config.json`.
pub(super) fn find(dir: &Path) -> Result<Found, TemplateError> {
    let mut found = Found::default();
    if let Some(text) = read(&dir.join(CONFIG_FILE))? {
        let config: Value = serde_json::from_str(&text).map_err(|e| TemplateError::Config {
            file: CONFIG_FILE.into(),
            reason: e.to_string(),
        })?;
        found.special_tokens = special_tokens(&config);
        found.templates = templates_of_config(&config)?;
    }
    if let Some(source) = read(&dir.join(TEMPLATE_FILE))? {
        found.templates = additional(&dir.join(MORE_TEMPLATES))?;
        found.templates.insert("default".into(), (TEMPLATE_FILE.into(), source));
    }
    if found.templates.is_empty() {
        return Err(TemplateError::Missing(dir.to_path_buf()));
    }
    Ok(found)
}

/// The text of a file, or none if there is no such file.
fn read(path: &Path) -> Result<Option<String>, TemplateError> {
    let failed = |source| TemplateError::Read { path: path.to_path_buf(), source };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut text = String::new();
    let bytes = file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if bytes as u64 > MAX_FILE_BYTES {
        return Err(TemplateError::TooLarge {
            what: path.display().to_string(),
            limit: MAX_FILE_BYTES as usize,
            remedy: "no tokenizer or template needs that much",
        });
    }
    Ok(Some(text))
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

fn additional(dir: &Path) -> Result<BTreeMap<String, (String, String)>, TemplateError> {
    let failed = |source| TemplateError::Read { path: dir.to_path_buf(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(failed)?,
    };
    let mut templates = BTreeMap::new();
    for entry in entries.take(TEMPLATES_MAX) {
        let path = entry.map_err(failed)?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        if let Some(name) = stem.filter(|_| path.extension().is_some_and(|e| e == "jinja"))
            && let Some(source) = read(&path)?
        {
            let file = format!("{MORE_TEMPLATES}/{name}.jinja");
            templates.insert(name, (file, source));
        }
    }
    Ok(templates)
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

    use super::{Found, find};

    /// A checkpoint directory with these files.
    fn found(files: &[(&str, &str)]) -> Result<Found, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        find(dir.path()).map_err(|error| error.to_string())
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
            ("{}", "has no chat template"),
            ("{\"chat_template\": 3}", "a text or a list"),
            ("{\"chat_template\": [{\"name\": \"x\"}]}", "chat_template[0]"),
            ("[]", "has no chat template"),
        ] {
            let error = found(&[("tokenizer_config.json", config)]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
