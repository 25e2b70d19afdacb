//! How rotary frequencies are stretched to contexts longer than the network was first trained on:
//! the keys of `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5), and what they
//! do to the frequencies, in fp32 and in the order transformers computes.

use std::f64::consts::PI;

use serde_json::{Map, Value};

use crate::{ConfigError, config::present};

/// One way to stretch the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every position divided by `factor` (Chen et al. 2023).
    Linear {
        /// Context length over the original one.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, smooth between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Context length of the first training, tokens.
        original_positions: f64,
    },
    /// YaRN (Peng et al. 2023, eq. 17 to 22).
    Yarn {
        /// Context length over the original one.
        factor: f64,
        /// Context length of the first training, tokens.
        original_positions: f64,
        /// Turns over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is divided by `factor`.
        beta_slow: f64,
        /// Factor of cosines and sines: the square root of the attention temperature's inverse.
        attention_factor: f64,
        /// Whether the borders between kept and divided frequencies are whole dimensions.
        truncate: bool,
    },
}

impl RopeScaling {
    /// Factor of all cosines and sines.
    pub(crate) fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }

    /// Frequencies, radians per position, of the D / 2 `wavelengths` over 2 pi that the base `theta`
    /// gives.
    pub(crate) fn frequencies(&self, wavelengths: &[f32], theta: f64) -> Vec<f32> {
        let plain = wavelengths.iter().map(|wavelength| 1.0 / wavelength);
        match *self {
            Self::None => plain.collect(),
            Self::Linear { factor } => plain.map(|frequency| frequency / factor as f32).collect(),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let long = original_positions / low_freq_factor;
                let short = original_positions / high_freq_factor;
                let stretch = |frequency: f32| {
                    let wavelength = (2.0 * PI) as f32 / frequency;
                    let divided = frequency / factor as f32;
                    if f64::from(wavelength) < short {
                        return frequency;
                    }
                    if f64::from(wavelength) > long {
                        return divided;
                    }
                    let smooth = (original_positions as f32 / wavelength - low_freq_factor as f32)
                        / (high_freq_factor - low_freq_factor) as f32;
                    (1.0 - smooth) * divided + smooth * frequency
                };
                plain.map(stretch).collect()
            }
            Self::Yarn { factor, .. } => wavelengths
                .iter()
                .enumerate()
                .map(|(index, wavelength)| {
                    let kept = self.share_kept(index, wavelengths.len(), theta);
                    let divided = 1.0 / (factor as f32 * wavelength);
                    divided * (1.0 - kept) + 1.0 / wavelength * kept
                })
                .collect(),
        }
    }

    /// How far YaRN keeps frequency `index` of `count`: 1 where it turns often, 0 where seldom.
    fn share_kept(&self, index: usize, count: usize, theta: f64) -> f32 {
        let Self::Yarn { original_positions, beta_fast, beta_slow, truncate, .. } = *self else {
            return 1.0;
        };
        let dim = (2 * count) as f64;
        // The dimension whose frequency makes so many turns over the original context.
        let border =
            |turns: f64| dim * (original_positions / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (low, high) = (border(beta_fast), border(beta_slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        let high = if low == high { high + 0.001 } else { high };
        let ramp = (index as f32 - low as f32) / (high - low) as f32;
        1.0 - ramp.clamp(0.0, 1.0)
    }
}

/// The part of `config.json` that holds the keys, for messages, and its keys.
struct Section<'a> {
    name: &'static str,
    keys: Map<String, Value>,
    json: &'a Map<String, Value>,
}

/// Reads the base of the frequencies and their scaling.
pub(crate) fn read(
    json: &Map<String, Value>,
    positions_max: i64,
) -> Result<(f64, RopeScaling), ConfigError> {
    let section = Section::find(json)?;
    let theta = section.theta()?;
    let original = section.number("original_max_position_embeddings")?;
    let original_positions = original.unwrap_or(positions_max as f64);
    let scaling = match section.kind()? {
        "default" => {
            section.allow_only(&[])?;
            RopeScaling::None
        }
        "linear" => {
            section.allow_only(&["factor"])?;
            RopeScaling::Linear { factor: section.factor()? }
        }
        "llama3" => {
            section.allow_only(&[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ])?;
            let low_freq_factor = section.needed("low_freq_factor")?;
            let high_freq_factor = section.needed("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                let key = section.key("high_freq_factor");
                let supported = "a number above low_freq_factor";
                return Err(ConfigError::unsupported(key, high_freq_factor, supported));
            }
            RopeScaling::Llama3 {
                factor: section.factor()?,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            }
        }
        "yarn" => section.yarn(original_positions)?,
        other => {
            let supported = "\"default\", \"linear\", \"llama3\", \"yarn\"";
            return Err(ConfigError::unsupported(section.key("rope_type"), other, supported));
        }
    };
    Ok((theta, scaling))
}

// === impl Section ===

impl<'a> Section<'a> {
    fn find(json: &'a Map<String, Value>) -> Result<Self, ConfigError> {
        let of = |name| present(json, name);
        let (name, value) = match (of("rope_parameters"), of("rope_scaling")) {
            (Some(_), Some(value)) => {
                let supported = "absent beside rope_parameters, which says the same";
                return Err(ConfigError::unsupported("rope_scaling", value, supported));
            }
            (Some(value), None) => ("rope_parameters", value),
            (None, Some(value)) => ("rope_scaling", value),
            (None, None) => return Ok(Self { name: "rope_scaling", keys: Map::new(), json }),
        };
        let keys = value.as_object().cloned();
        let keys = keys.ok_or_else(|| ConfigError::Key(name.to_owned(), "JSON object"))?;
        Ok(Self { name, keys, json })
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    /// `rope_type`, or `type` as it was called first.
    fn kind(&self) -> Result<&str, ConfigError> {
        let of = |key| match present(&self.keys, key) {
            None => Ok(None),
            Some(Value::String(kind)) => Ok(Some(kind.as_str())),
            Some(_) => Err(ConfigError::Key(self.key(key), "string")),
        };
        match (of("rope_type")?, of("type")?) {
            (Some(kind), Some(old)) if kind != old => {
                Err(ConfigError::unsupported(self.key("type"), old, "the same as rope_type"))
            }
            (Some(kind), _) | (None, Some(kind)) => Ok(kind),
            (None, None) => Ok("default"),
        }
    }

    fn theta(&self) -> Result<f64, ConfigError> {
        let own = present(&self.keys, "rope_theta");
        let theta = own.or_else(|| self.json.get("rope_theta")).and_then(Value::as_f64);
        // From 1 on, frequencies fall with the dimension, as the scalings take for granted.
        theta.filter(|theta| *theta > 1.0).ok_or_else(|| {
            ConfigError::Key("rope_theta (or rope_parameters.rope_theta)".into(), "number above 1")
        })
    }

    /// A positive number, where the key is there.
    fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let wrong = || ConfigError::Key(self.key(key), "number above 0");
        let positive = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        present(&self.keys, key).map(|value| positive(value).ok_or_else(wrong)).transpose()
    }

    fn needed(&self, key: &str) -> Result<f64, ConfigError> {
        self.number(key)?.ok_or_else(|| ConfigError::Key(self.key(key), "number above 0"))
    }

    fn factor(&self) -> Result<f64, ConfigError> {
        let factor = self.needed("factor")?;
        if factor < 1.0 {
            return Err(ConfigError::unsupported(self.key("factor"), factor, "a number from 1"));
        }
        Ok(factor)
    }

    /// A key nobody reads would be a meaning nobody follows.
    fn allow_only(&self, allowed: &[&str]) -> Result<(), ConfigError> {
        let known = |key: &str| ["rope_type", "type", "rope_theta"].contains(&key);
        for (key, value) in &self.keys {
            if !known(key) && !allowed.contains(&key.as_str()) && !value.is_null() {
                let supported = "no such key for this rope_type";
                return Err(ConfigError::unsupported(self.key(key), value, supported));
            }
        }
        Ok(())
    }

    fn yarn(&self, original_positions: f64) -> Result<RopeScaling, ConfigError> {
        self.allow_only(&[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ])?;
        let factor = self.factor()?;
        let scale = |mscale: f64| 0.1 * mscale * factor.ln() + 1.0;
        let inferred = match (self.number("mscale")?, self.number("mscale_all_dim")?) {
            (Some(mscale), Some(all)) => scale(mscale) / scale(all),
            _ => scale(1.0),
        };
        let truncate = match present(&self.keys, "truncate") {
            None => true,
            Some(Value::Bool(truncate)) => *truncate,
            Some(_) => return Err(ConfigError::Key(self.key("truncate"), "boolean")),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_positions,
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            attention_factor: self.number("attention_factor")?.unwrap_or(inferred),
            truncate,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_scaling(scaling: Value) -> Result<RopeScaling, ConfigError> {
        let json = json!({"rope_theta": 10000.0, "rope_scaling": scaling});
        Ok(read(json.as_object().unwrap(), 4096)?.1)
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        let refused = [
            ("rope_type", json!({"type": "dynamic", "factor": 2.0})),
            ("rope_type", json!({"rope_type": "longrope"})),
            ("rope_scaling.type", json!({"rope_type": "yarn", "type": "linear"})),
            ("factor", json!({"type": "linear"})),
            ("factor", json!({"type": "linear", "factor": 0.5})),
            ("factor", json!({"type": "yarn", "factor": "4"})),
            (
                "high_freq_factor",
                json!({
                    "rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4
                }),
            ),
            ("truncate", json!({"type": "yarn", "factor": 4.0, "truncate": 1})),
            ("mrope_section", json!({"type": "default", "mrope_section": [2, 3, 3]})),
            ("full_attention", json!({"full_attention": {"rope_type": "default"}})),
            ("rope_scaling", json!("linear")),
        ];
        for (key, scaling) in refused {
            let error = read_scaling(scaling).expect_err(key).to_string();
            assert!(error.contains(key), "{error}");
        }
        let both = json!({
            "rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "linear"}
        });
        let error = read(both.as_object().unwrap(), 4096).unwrap_err().to_string();
        assert!(error.contains("beside rope_parameters"), "{error}");
    }

    #[test]
    fn yarn_without_an_original_length_takes_the_longest_sequence() {
        let scaling = read_scaling(json!({"type": "yarn", "factor": 4.0})).unwrap();
        let RopeScaling::Yarn { original_positions, attention_factor, .. } = scaling else {
            panic!("{scaling:?}");
        };
        assert_eq!(original_positions, 4096.0);
        assert!((attention_factor - 1.138_629).abs() < 1e-6, "{attention_factor}");
    }
}
