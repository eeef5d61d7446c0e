"""Numbered clauses of the contract. An id is permanent: a clause may be withdrawn, never renumbered
or reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Clause:
    """State one numbered sentence that an implementation can be held to, with its formula where it
    has one."""

    id: str
    text: str
    formula: str = ""


CLAUSES: tuple[Clause, ...] = (
    # what is computed, stage by stage
    Clause(
        "IN-1",
        "hook_in holds the hidden states the layer is given, as the layer is given them: after the"
        " block's input norm, where it has one.",
    ),
    Clause("IN-2", "hook_in has axes batch pos d_model."),
    Clause(
        "SPLIT-1",
        "With split inputs opted in, each head reads its own copy of hook_in: hook_attn_in for"
        " query, key and value together, or hook_q_input, hook_k_input and hook_v_input apart. The"
        " two are not opted in together.",
        "x_h = hook_in",
    ),
    Clause(
        "SPLIT-2",
        "hook_attn_in and hook_q_input have axes batch pos head d_model, hook_k_input and"
        " hook_v_input batch pos kv_head d_model.",
    ),
    Clause(
        "SPLIT-3",
        "Under hook_attn_in each query head projects a key and a value of its own, with the weights"
        " of the kv head it shares, so that an edit of head h moves what head h uses and nothing"
        " else (but for a norm that takes all heads together); the axis kv_head then has the length"
        " of head.",
    ),
    Clause(
        "LAT-1",
        "In multi-head latent attention hook_q_latent and hook_kv_latent hold what the"
        " up-projections are given: hook_in projected down, normalised, and scaled where the family"
        " scales; hook_q_latent, where the family brings that up too, the latent as it was before"
        " beside it. Every head shares them, so inputs are not split.",
        "c_Q = s_Q norm(x W_DQ + b_DQ), or [that, x W_DQ + b_DQ],  c_KV = s_KV norm(x W_DKV +"
        " b_DKV)",
    ),
    Clause("LAT-2", "hook_q_latent has axes batch pos q_rank, hook_kv_latent batch pos kv_rank."),
    Clause(
        "PROJ-1",
        "hook_q, hook_k and hook_v hold the projections, before any norm, of hook_in or of its"
        " latents; the key and the value times the family's multipliers. With latents a head's key"
        " is its part that comes up from the latent, followed by the rotary part that all heads"
        " share, normalised where the family norms it. Where the model hands down what is added to"
        " the value, hook_v holds the sum; where a layer has adapters beside its projections, each"
        " holds the sum of both.",
        "q = x W_Q + b_Q,  k = m_K (x W_K + b_K),  v = m_V (x W_V + b_V);  with latents q = c_Q"
        " W_Q, k = [c_KV W_K, norm(x W_KR + b_KR)], v = c_KV W_V",
    ),
    Clause(
        "CLIP-1",
        "Where the family clips, hook_q, hook_k and hook_v hold the clipped projections; of query"
        " and key, where a norm comes before rotation, that norm's hooks instead.",
        "min(max(q, -c), c)",
    ),
    Clause(
        "PROJ-2",
        "hook_q has axes batch pos head d_head, hook_k batch pos kv_head d_head, hook_v batch pos"
        " kv_head d_head_v.",
    ),
    Clause(
        "NORM-1",
        "hook_q_normed, hook_k_normed and hook_v_normed hold query, key and value after the"
        " family's norm: root mean square or layer norm, over a head or over all heads at once.",
        "rms: x / sqrt(mean(x^2) + eps) * w + b;  layer: (x - mean x) / sqrt(var x + eps) * w + b; "
        " one_plus: 1 + w in place of w;  none: no w",
    ),
    Clause(
        "NORM-2",
        "The norm's hooks have the axes of the projection; where the family normalises all heads at"
        " once, head and d_head lie flat in one axis.",
    ),
    Clause(
        "NORM-3",
        "In a family that norms query and key after their rotation, the norm's hooks fire after"
        " hook_rot_q and hook_rot_k, and the normalised key is what is cached.",
    ),
    Clause(
        "POS-1",
        "hook_cos and hook_sin hold the tables the layer is given, in the layout and dtype its"
        " rotary module makes them; of a complex table real and imaginary part; of tables for all"
        " keys those of this call's positions.",
    ),
    Clause(
        "POS-2",
        "hook_cos and hook_sin have axes batch pos rotary_dim; batch may be 1. A table without a"
        " batch axis is accepted and given one.",
    ),
    Clause(
        "ROT-1",
        "hook_rot_q and hook_rot_k hold query and key with each pair of their rotary dimensions,"
        " the leading or the trailing ones, turned by the angle of its position, in place; the"
        " other dimensions pass through. Of a table that holds each frequency twice, pairs of"
        " halves and repeated entries read each its own copy; interleaved pairs read the first"
        " half of a full table for both. In a layer that does not rotate they hold query and key"
        " unchanged.",
        "(a, b) -> (a cos - b sin, b cos + a sin);  backward: -sin in place of sin;  pairs: half"
        " (i, i + width/2), interleaved (2i, 2i + 1)",
    ),
    Clause(
        "ROT-3",
        "In a family that rotates values as it does keys, hook_rot_v holds the rotated value, which"
        " is then what is cached and mixed.",
    ),
    Clause(
        "ROT-2",
        "hook_rot_q has axes batch pos head d_head, hook_rot_k batch pos kv_head d_head, hook_rot_v"
        " batch pos kv_head d_head_v; pos counts the positions of this call, not cached ones.",
    ),
    Clause(
        "SCORE-1",
        "hook_attn_scores holds what softmax is given: query times key, scaled, then softcapped,"
        " then masked, made in at least float32 and rounded to the layer's dtype to be shown."
        " Query head h reads kv head h // group.",
        "s = scale (q . k);  s = cap tanh(s / cap);  s = s + bias, -inf where forbidden",
    ),
    Clause(
        "SCORE-2", "hook_attn_scores has axes batch head query key; key counts cached keys too."
    ),
    Clause(
        "SCORE-4",
        "In a family whose query has a temperature, it is a factor of the scale. Positions are the"
        " call's position ids, or those that count on from the cache.",
        "t(i) = 1 + beta log(1 + floor((i + shift) / length));  s = scale t(i) (q . k)",
    ),
    Clause(
        "SCORE-5",
        "In a family that biases keys by their values, the bias of key j is added for all queries,"
        " made of what the hooks left of the values of all kv heads. Of the keys that the mask"
        " allows a query sees those of the largest bias, as many as the family keeps.",
        "s = s + exp(A softplus(W_dt v_j + b_dt)), for the kv head of the query head",
    ),
    Clause("SCORE-3", "An edit that leaves NaN or +inf in the scores is refused."),
    Clause(
        "SCORE-6",
        "A key that a query may not see stays forbidden: an edit that leaves anything but -inf at"
        " its score is refused. What may be seen is said by the mask, not by a hook.",
    ),
    Clause(
        "PAT-1",
        "hook_pattern holds what softmax gave, before dropout, of what hook_attn_scores left; where"
        " that is what was shown, of the scores before they were rounded to be shown. A sink takes"
        " part in the softmax and has no column: a row then sums to less than 1.",
        "p = exp(s - m) / (sum_key exp(s - m) + exp(sink - m))",
    ),
    Clause("PAT-2", "hook_pattern has axes batch head query key."),
    Clause(
        "PAT-3", "The attention weights a layer returns, when asked for them, are hook_pattern."
    ),
    Clause(
        "GATE-1",
        "hook_gate holds what each head's mix of values is multiplied by. Where the gate lies in"
        " the query projection, hook_q_gate holds its rows before the activation; with latents they"
        " come up from the query's.",
        "g = sigmoid(x W_G + b_G), or softplus;  g = sigmoid(hook_q_gate), hook_q_gate = x W_G, or"
        " with latents c_Q W_G",
    ),
    Clause(
        "GATE-2",
        "hook_q_gate has axes batch pos head d_head_v; so has hook_gate, or batch pos head where"
        " the family has one gate per head.",
    ),
    Clause(
        "MIX-1",
        "hook_z holds what the output projection is given: each head's mix of values, normalised"
        " and then gated where the family does so.",
        "z = g norm(p v)",
    ),
    Clause(
        "MIX-3",
        "In exclusive self-attention the part of each head's mix that lies along the query's own"
        " value is taken from it, as much as the family's parameter says, before norm and gate.",
        "z = z - tanh(alpha_h) (z . u) u,  u = v / max(|v|, 1e-12) at the query's position",
    ),
    Clause("MIX-2", "hook_z has axes batch pos head d_head_v."),
    Clause(
        "DIFF-1",
        "In differential attention heads h and h + heads / 2 are a pair, and mix the same values:"
        " those of kv heads j and j + kv_heads / 2 side by side, j being the kv head of h."
        " hook_pattern holds the patterns of all heads; hook_z holds of each pair the difference,"
        " normalised, with axes batch pos pair d_pair, d_pair being twice d_head_v, and hook_result"
        " has axes batch pos pair d_model.",
        "z = (1 - init) norm(p_h [v_j, v_j'] - lambda p_h' [v_j, v_j']),  lambda = exp(q1 . k1) -"
        " exp(q2 . k2) + init",
    ),
    Clause(
        "RES-1",
        "With attn_result opted in, hook_result holds what each head adds to the output, without"
        " the bias.",
        "r_h = z_h W_O[h]",
    ),
    Clause("RES-2", "hook_result has axes batch pos head d_model."),
    Clause("OUT-1", "hook_out holds what the layer returns.", "out = sum_h z_h W_O[h] + b_O"),
    Clause(
        "OUT-2",
        "hook_out has axes batch pos d_model; d_out in place of d_model, there and at hook_result,"
        " where a layer gives back another width.",
    ),
    Clause(
        "KV-1",
        "A layer to which an earlier layer's keys and values are given has no hook for its own key"
        " and value: it reads what the earlier layer left, after that layer's hooks. Where the"
        " family's value is its key, hook_v holds what hook_k left.",
        "v = k",
    ),
    Clause(
        "KV-2",
        "A layer that is handed another sequence makes keys and values of it too, before its own or"
        " after them: hook_kv_in holds its states, with axes batch source d_model, and hook_k,"
        " hook_v, their norms' hooks and hook_rot_k hold both, with axes batch kv_pos ..., in the"
        " order of the keys. A sequence that comes after is not rotated; once its keys are cached,"
        " hook_kv_in does not fire.",
        "k = [s, x] W_K + b_K, or [x, s] W_K + b_K",
    ),
    # arguments
    Clause(
        "ARG-1",
        "An argument that is not None is understood or refused, at a call and in the signature of"
        " the wrapped class. What each means stands in one table, ropebridge_spec.ARGUMENTS: read,"
        " safe to ignore, or refused.",
    ),
    # masks
    Clause(
        "MASK-1",
        "A four-axis mask (batch or 1, head or 1, query or 1, key), boolean (True sees) or"
        " additive, is the whole truth about what may be seen. A three-axis mask (batch, query,"
        " key) is one without its head axis, and a flex BlockMask the one that its mask_mod says.",
    ),
    Clause(
        "MASK-2",
        "Without a mask a query sees the keys at its own and earlier positions, within the layer's"
        " window and chunk; in a layer that is not causal at later positions too.",
        "visible(i, j) = (j <= i or not causal) and (no window or |i - j| < window) and (no chunk"
        " or i // chunk = j // chunk)",
    ),
    Clause(
        "MASK-3",
        "A two-axis mask (batch, key) of booleans, or of zeros and ones, says which keys are"
        " padding; causality and window hold beside it.",
    ),
    Clause("MASK-4", "A mask of any other form or shape is refused."),
    Clause(
        "MASK-5",
        "An additive entry at most half the lowest number of the mask's dtype forbids: the score is"
        " -inf. Any other entry is a bias and is added.",
    ),
    Clause("MASK-6", "A row that sees no key has pattern and z of exactly 0 and finite gradients."),
    Clause(
        "MASK-7",
        "A key that a query may not see changes nothing in that query's row, whatever finite"
        " numbers its key and value hold.",
    ),
    Clause(
        "SEL-1",
        "In a family whose layers select keys, a query sees those that the layer's own selector"
        " picks for it, or that an earlier layer's picked and handed down, of those that the mask"
        " allows. The selector is given what the hooks left of hook_in, hook_q_latent and the"
        " tables, and the mask; what goes on inside it is its own.",
        "s = -inf where the key is not picked for the query",
    ),
    # firing
    Clause(
        "FIRE-1",
        "A layer has exactly the hook points its variant has, and they fire in contract order.",
    ),
    Clause(
        "FIRE-2",
        "A watched hook fires exactly once in a call of the layer; recomputation under gradient"
        " checkpointing fires again, with hook.recomputing true.",
    ),
    Clause(
        "FIRE-3", "A hook that was asked for and did not fire is an error, not an empty result."
    ),
    Clause(
        "FIRE-4",
        "A hook is called as fn(tensor, hook=hook_point); hook.name is the full name. It returns"
        " None to look, or a tensor to replace.",
    ),
    # editing
    Clause(
        "EDIT-1",
        "A replacement is what the rest of the layer sees; all earlier stages stay bit-identical.",
    ),
    Clause(
        "EDIT-2",
        "An edit in place counts as a replacement, through any view. The tensor shown is contiguous"
        " and nobody else's, whoever else watches: an edit changes nothing outside the layer, and"
        " nothing that is done with the output changes what was shown.",
    ),
    Clause(
        "EDIT-3",
        "A replacement has the shape, dtype and device of what it replaces; anything else is"
        " refused and names the clause.",
    ),
    Clause("EDIT-4", "Edits of keys and values enter the cache: later steps see them."),
    Clause(
        "PART-1",
        "A hook may be asked to be given a part: some numbers along the axis of heads (head,"
        " kv_head or pair), along that of this call's positions (query or pos), along key. It is"
        " then given those alone, in the order asked for, with the axes of the whole, and"
        " hook.selection says which. What it leaves there is what the rest of the layer sees;"
        " everything else stays as it was.",
    ),
    Clause(
        "PART-2",
        "Several parts of one hook and the whole of it may be watched at once. Each hook is called"
        " once in a call of the layer, in the order in which they were added, and sees what those"
        " before it left.",
    ),
    Clause(
        "LOOK-1",
        "Looking changes nothing: with hooks that return None the output is the output without"
        " hooks, within the stage bounds, and no further from the float64 truth but for the"
        " rounding of the pattern that is shown.",
    ),
    Clause(
        "GRAD-1",
        "A gradient taken at what a hook was given is the derivative of the output by it; a"
        " backward hook sees that gradient and may replace it.",
    ),
    # agreement
    Clause(
        "PAR-1",
        "The output agrees with the wrapped module's own eager forward, on every row that sees a"
        " key.",
    ),
    Clause(
        "PAR-2",
        "In bfloat16 and float16, watched or not, the output's root-mean-square error to the"
        " float64 truth is at most 1.05 times, and its largest error at most twice, that of the"
        " wrapped module in the same dtype.",
    ),
    Clause(
        "BACK-1",
        "A layer leaves the module it is built around as it is. After detach the model is what it"
        " was: the same objects, the same keys, no hook left, and the same output to the bit.",
    ),
    Clause(
        "TYPE-1",
        "Every hook's tensor has the dtype and device of the hidden states; hook_cos and hook_sin"
        " have those of the tables given.",
    ),
    Clause(
        "TYPE-2",
        "A layer runs on the meta device, with the shapes and dtypes of the contract. Every tensor"
        " it makes lies on the device of its hidden states, and it reads no number off a tensor,"
        " but for what SCORE-3 and MASK-3 ask, and on a CPU off the mask that it is handed.",
    ),
    Clause(
        "MEM-1",
        "Where nobody watches hook_attn_scores or hook_pattern, and no mask of that size is handed"
        " down, no tensor of size query times key is made.",
    ),
    Clause(
        "MEM-2",
        "Where hooks are given parts of hook_attn_scores and hook_pattern, nobody the whole of"
        " them, and no gradient is taken, no tensor of size query times key is made but those"
        " parts.",
    ),
    Clause(
        "ISO-1",
        "Layers never see each other: hooks and edits of one change nothing in another, in whatever"
        " order or thread they run. A hook that raises ends its call, and leaves nothing behind.",
    ),
    Clause(
        "CACHE-1",
        "A step that reads a cache gives at every hook what the same positions give without one.",
    ),
    Clause("DROP-1", "Dropout applies in training mode only, to the pattern after hook_pattern."),
    Clause(
        "DROP-2",
        "Where the family drops out its output, it does so in training mode only, after hook_out.",
    ),
    # the constructor of the bridge
    Clause(
        "CFG-1",
        "optional: a bridge built with optional=True accepts that the model has no such component;"
        " otherwise None is refused.",
    ),
    Clause(
        "CFG-2",
        "requires_attention_mask: get_random_inputs gives an explicit mask when true, None when"
        " false; forward takes either.",
    ),
    Clause(
        "CFG-3",
        "requires_position_embeddings: when true, a rotating layer refuses to run without tables;"
        " when false it makes them with its rotary module.",
    ),
    Clause(
        "CFG-4",
        "submodules: a mapping from role (q k v o q_norm k_norm) to attribute name; what is missing"
        " or not there is refused by name.",
    ),
)

CLAUSE_BY_ID: Mapping[str, Clause] = {clause.id: clause for clause in CLAUSES}
