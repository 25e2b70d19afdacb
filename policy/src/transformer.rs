//! The transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU; what Qwen2, Qwen3 and
//! Llama 3 differ in is optional. Two passes over one set of parameters: whole sequences for
//! training, and appended tokens over a KV cache for sampling, for which a CPU has its own code (`cpu`).

use tch::{Kind, Tensor};

use crate::{
    CacheFull, KvCache, Policy,
    cpu::Appended,
    extension::{Extension, Projected},
    packing::groups_of_like_length,
    parameters::Layer,
    rope::Rotation,
};

impl Policy {
    /// Logits [B, T, V] of whole sequences `tokens` [B, T] (int64), in fp32. Sequences shorter than T
    /// are padded at their end with any token: attention is causal, so padding changes nothing before
    /// it.
    #[must_use]
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        self.head(&self.hidden(tokens))
    }

    /// Final hidden states [B, T, E], normalised: [`Self::head`] turns rows of them into logits.
    #[must_use]
    pub fn hidden(&self, tokens: &Tensor) -> Tensor {
        let (batch, time) = tokens.size2().expect("tokens are [B, T]");
        let positions = Tensor::arange(time, (Kind::Int64, self.device())).repeat([batch]);
        let rotation = self.rope.at(&positions);
        let mut hidden = self.embed(&tokens.reshape([-1]));
        for layer in &self.parameters.layers {
            let Projected { query, key, value } = self.project(layer, &hidden, &rotation);
            // [B * T, heads, D] -> [B, heads, T, D]
            let split = |x: &Tensor, heads| {
                x.view([batch, time, heads, self.config().head_dim]).transpose(1, 2)
            };
            let attended = Tensor::scaled_dot_product_attention::<&Tensor>(
                &split(&query, self.config().heads),
                &self.repeat_heads(&split(&key, self.config().kv_heads)),
                &self.repeat_heads(&split(&value, self.config().kv_heads)),
                None,
                0.0,
                true,
                None,
                false,
            );
            hidden =
                self.close(layer, &hidden, &attended.transpose(1, 2).reshape([batch * time, -1]));
        }
        self.normalise(&hidden, &self.parameters.norm).view([batch, time, -1])
    }

    /// Logits [.., V] of normalised hidden states [.., E], in fp32.
    #[must_use]
    pub fn head(&self, hidden: &Tensor) -> Tensor {
        let parameters = &self.parameters;
        let weight = parameters.head.as_ref().unwrap_or(&parameters.embedding).tr();
        if hidden.device().is_cuda() && hidden.kind() == Kind::BFloat16 && hidden.dim() == 2 {
            // The product's sums are fp32 there: rounding a logit of 20 to bf16 would cost 0.06.
            return hidden.mm_dtype(&weight, Kind::Float);
        }
        hidden.matmul(&weight).to_kind(Kind::Float)
    }

    /// Appends tokens to sequences in the cache: `appended` lists distinct slots, each with at least
    /// one token. Returns the logits [B, V] after the last token of each, in fp32. No gradients.
    ///
    /// # Errors
    /// A slot that cannot hold its tokens; then nothing is changed.
    pub fn extend(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor, CacheFull> {
        reserve(cache, appended)?;
        let on_cpu = self.with_network(|network| {
            let stream = network.append(&self.rope, cache, &placed(cache, appended));
            grow(cache, appended);
            network.logits(&stream)
        });
        match on_cpu {
            Some(logits) => Ok(logits),
            None => self.extend_in_libtorch(cache, appended),
        }
    }

    /// [`Self::extend`] without logits, for tokens that nothing is sampled after.
    ///
    /// # Errors
    /// A slot that cannot hold its tokens; then nothing is changed.
    pub fn prefill(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<(), CacheFull> {
        reserve(cache, appended)?;
        let on_cpu = self.with_network(|network| {
            let _stream = network.append(&self.rope, cache, &placed(cache, appended));
            grow(cache, appended);
        });
        match on_cpu {
            Some(()) => Ok(()),
            None => self.append_in_libtorch(cache, appended).map(|_stream| ()),
        }
    }

    /// [`Self::extend`] on any device.
    pub(crate) fn extend_in_libtorch(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor, CacheFull> {
        let stream = self.append_in_libtorch(cache, appended)?;
        let normed = |stream| self.normalise(stream, &self.parameters.norm);
        Ok(tch::no_grad(|| self.head(&normed(&stream))))
    }

    /// Takes tokens into the cache; the stream [B, E] after the last token of each.
    fn append_in_libtorch(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor, CacheFull> {
        let groups = groups_of_like_length(appended);
        let parts: Vec<Tensor> = groups
            .iter()
            .map(|group| {
                let rows: Vec<_> = group.iter().map(|row| appended[*row]).collect();
                tch::no_grad(|| self.append_group(cache, &rows))
            })
            .collect::<Result<_, _>>()?;
        if let [only] = parts.as_slice() {
            return Ok(only.shallow_clone());
        }
        let mut place = vec![0i64; appended.len()];
        groups.iter().flatten().enumerate().for_each(|(at, row)| place[*row] = at as i64);
        let place = Tensor::from_slice(&place).to(self.device());
        Ok(Tensor::cat(&parts, 0).index_select(0, &place))
    }

    fn append_group(
        &self,
        cache: &mut KvCache,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor, CacheFull> {
        let extension = Extension::plan(self, cache, appended)?;
        let tokens: Vec<i64> =
            appended.iter().flat_map(|(_, tokens)| tokens.iter().map(|t| i64::from(*t))).collect();
        let mut hidden = self.embed(&Tensor::from_slice(&tokens).to(self.device()));
        let rotation = self.rope.at(&extension.positions);
        for (index, layer) in self.parameters.layers.iter().enumerate() {
            let projected = self.project(layer, &hidden, &rotation);
            let attended = extension.attend(self, cache, index, &projected);
            hidden = self.close(layer, &hidden, &attended);
        }
        grow(cache, appended);
        if tokens.len() == appended.len() {
            return Ok(hidden);
        }
        let mut count = 0i64;
        let last: Vec<i64> = appended
            .iter()
            .map(|(_, tokens)| {
                count += tokens.len() as i64;
                count - 1
            })
            .collect();
        Ok(hidden.index_select(0, &Tensor::from_slice(&last).to(self.device())))
    }

    fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(&self.parameters.embedding, tokens, -1, false, false)
    }

    /// RMSNorm; libtorch sums in fp32 whatever the kind.
    fn normalise(&self, x: &Tensor, weight: &Tensor) -> Tensor {
        let width = [*weight.size().last().expect("a norm weight has one dimension")];
        x.rms_norm(width, Some(weight), self.config().rms_norm_eps)
    }

    /// Queries, keys and values of hidden states [N, E], normed where the family does, and rotated.
    fn project(&self, layer: &Layer, hidden: &Tensor, rotation: &Rotation) -> Projected {
        let config = self.config();
        let (heads, kv_heads, dim) = (config.heads, config.kv_heads, config.head_dim);
        let input = self.normalise(hidden, &layer.input_norm);
        let mixed = input.linear(&layer.qkv, layer.qkv_bias.as_ref());
        let mixed = mixed.view([-1, heads + 2 * kv_heads, dim]);
        let mut turned = mixed.narrow(1, 0, heads + kv_heads);
        if let Some((query_norm, key_norm)) = &layer.qk_norm {
            // Queries and keys in one pass, each head times the weight of its sort.
            let of = |weight: &Tensor, heads| weight.expand([heads, dim], false);
            let weight = Tensor::cat(&[of(query_norm, heads), of(key_norm, kv_heads)], 0);
            turned = turned.rms_norm([dim], None::<&Tensor>, config.rms_norm_eps) * weight;
        }
        let turned = rotation.apply(&turned);
        Projected {
            query: turned.narrow(1, 0, heads),
            key: turned.narrow(1, heads, kv_heads),
            value: mixed.narrow(1, heads + kv_heads, kv_heads),
        }
    }

    /// The rest of a layer after attention: output projection and SwiGLU, each added to the stream
    /// within its matrix product.
    fn close(&self, layer: &Layer, hidden: &Tensor, attended: &Tensor) -> Tensor {
        let stream =
            layer.output_bias.as_ref().map_or_else(|| hidden.shallow_clone(), |b| hidden + b);
        let stream = stream.addmm(attended, &layer.output.tr());
        let mixed = self.normalise(&stream, &layer.post_attention_norm).matmul(&layer.gate_up.tr());
        let halves = mixed.chunk(2, -1);
        stream.addmm(&(halves[0].silu() * &halves[1]), &layer.down.tr())
    }

    /// [B, K, T, D] -> [B, H, T, D]
    fn repeat_heads(&self, x: &Tensor) -> Tensor {
        let (batch, kv_heads, time, dim) = x.size4().expect("keys are [B, K, T, D]");
        let group = self.config().group();
        if group == 1 {
            return x.shallow_clone();
        }
        x.unsqueeze(2).expand([batch, kv_heads, group, time, dim], false).reshape([
            batch,
            kv_heads * group,
            time,
            dim,
        ])
    }
}

/// Checks that every slot has room.
fn reserve(cache: &KvCache, appended: &[(usize, &[u32])]) -> Result<(), CacheFull> {
    appended.iter().try_for_each(|(slot, tokens)| cache.reserve(*slot, tokens.len()).map(drop))
}

/// Where the tokens go.
fn placed<'a>(cache: &KvCache, appended: &[(usize, &'a [u32])]) -> Vec<Appended<'a>> {
    let place = |(slot, tokens): &(usize, &'a [u32])| Appended {
        slot: *slot,
        position: cache.length(*slot),
        tokens,
    };
    appended.iter().map(place).collect()
}

fn grow(cache: &mut KvCache, appended: &[(usize, &[u32])]) {
    for (slot, tokens) in appended {
        cache.lengths[*slot] += tokens.len();
    }
}
