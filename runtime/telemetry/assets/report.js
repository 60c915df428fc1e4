(function () {
  "use strict";
  var data = JSON.parse(document.getElementById("plots").textContent);
  ["curves", "axes", "trials", "effects", "rules", "parts", "stages", "anova", "contours", "spans"].forEach(function (k) { data[k] = data[k] || []; });
  var dark = window.matchMedia("(prefers-color-scheme: dark)");
  var calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  var get = function (id) { return document.getElementById(id); };
  document.documentElement.classList.add("on");

  function color(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
  function esc(s) { return echarts.format.encodeHTML(String(s)); }
  function ok(x) { return typeof x === "number" && isFinite(x); }
  function brief(x) {
    var a = Math.abs(x);
    if (a >= 1e9) return +(x / 1e9).toPrecision(3) + "B";
    if (a >= 1e6) return +(x / 1e6).toPrecision(3) + "M";
    if (a >= 1e4) return +(x / 1e3).toPrecision(3) + "k";
    return String(+x.toPrecision(a >= 1000 ? 4 : 3));
  }

  // Colours of scores: the best at one end, the upper decile and worse at the other.
  var scores = data.trials.map(function (t) { return t.bits; }).filter(ok).sort(function (a, b) { return a - b; });
  var low = scores[0], high = scores[Math.floor((scores.length - 1) * 0.9)];
  function mix(a, b, x) {
    var p = echarts.color.parse(a), q = echarts.color.parse(b);
    return "rgb(" + [0, 1, 2].map(function (i) { return Math.round(p[i] + (q[i] - p[i]) * x); }).join(",") + ")";
  }
  function ramp(score) {
    if (!ok(score)) return color("c8");
    var x = high > low ? Math.min(1, Math.max(0, (score - low) / (high - low))) : 0;
    return x < 0.5 ? mix(color("r1"), color("r2"), 2 * x) : mix(color("r2"), color("r3"), 2 * x - 1);
  }

  function base() {
    return {
      animation: !calm.matches, animationDuration: 300, backgroundColor: "transparent",
      textStyle: { color: color("ink"), fontFamily: getComputedStyle(document.body).fontFamily },
      tooltip: { confine: true, backgroundColor: color("card"), borderColor: color("line"), textStyle: { color: color("ink"), fontSize: 12 } }
    };
  }
  function axis(more) {
    return Object.assign({
      nameLocation: "middle", nameGap: 28, nameTextStyle: { color: color("soft") }, axisLabel: { color: color("soft"), formatter: brief, hideOverlap: true },
      axisLine: { lineStyle: { color: color("line") } }, axisTick: { lineStyle: { color: color("line") } }, splitLine: { lineStyle: { color: color("grid") } }
    }, more);
  }

  // logTicks are 1, 2, 5, 10, … within a range, at most about eight.
  function logTicks(lo, hi) {
    var decades = Math.log(hi / lo) / Math.LN10, of = decades > 5 ? [1] : decades > 2 ? [1, 3] : [1, 2, 5], out = [];
    if (decades < 0.6) of = [1, 1.5, 2, 3, 4, 5, 6, 8];
    for (var e = Math.floor(Math.log(lo) / Math.LN10); e <= Math.ceil(Math.log(hi) / Math.LN10); e++) of.forEach(function (m) {
      var v = +(m * Math.pow(10, e)).toPrecision(3);
      if (v >= lo && v <= hi) out.push(v);
    });
    return out;
  }
  function logAxis(name, lo, hi) {
    var ticks = logTicks(lo, hi);
    return axis({ type: "log", name: name, min: lo, max: hi, splitLine: { show: false }, axisTick: { customValues: ticks, lineStyle: { color: color("line") } },
      axisLabel: { color: color("soft"), formatter: brief, hideOverlap: true, customValues: ticks } });
  }

  var xNames = { step: "steps", tokens: "tokens", seconds: "seconds of training" };
  function curves() {
    var x = get("curve-x").value, y = get("curve-y").value, log = get("curve-log").checked, whole = get("curve-all").checked;
    var vx = { step: "vstep", tokens: "vtokens", seconds: "vseconds" }[x];
    var series = [], values = [], xs = [], ends = [];
    function pairs(a, b) {
      var out = [];
      for (var i = 0; a && b && i < a.length; i++) if (ok(a[i]) && ok(b[i]) && (!log || a[i] > 0)) {
        out.push([a[i], b[i]]);
        xs.push(a[i]);
        values.push(b[i]);
      }
      if (out.length) ends.push(out[out.length - 1][1]);
      return out;
    }
    data.curves.forEach(function (c) {
      var final = c.id === "final", stroke = final ? color("accent") : ramp(c.score);
      var line = y === "valid" ? [] : pairs(c[x], c[y]);
      var dots = y === "loss" ? [] : pairs(c[vx], c.vbits);
      if (line.length) series.push({
        name: c.id, type: "line", data: line, showSymbol: line.length === 1, symbolSize: 4, z: final ? 5 : 2,
        lineStyle: { color: stroke, width: final ? 3 : 1.3, opacity: final ? 1 : 0.75, type: c.status === "failed" ? "dashed" : "solid" },
        itemStyle: { color: stroke }, emphasis: { disabled: true }
      });
      if (dots.length) series.push({
        name: c.id + (line.length ? ", validation" : ""), type: y === "valid" && dots.length > 1 ? "line" : "scatter", data: dots, symbol: "circle",
        symbolSize: final ? 6 : 7, z: final ? 6 : 4, showSymbol: true, lineStyle: { color: stroke, width: final ? 3 : 1.3 },
        itemStyle: { color: stroke, borderColor: color("card"), borderWidth: 1 }, emphasis: { disabled: true }
      });
    });
    var left = Math.min.apply(null, xs), right = Math.max.apply(null, xs);
    var min = Math.min.apply(null, values), max = Math.max.apply(null, values);
    // The losses of the first steps would press everything else together.
    var top = ends.length ? Math.max.apply(null, ends) : max;
    if (!whole) max = Math.min(max, min + 1.6 * (top - min) + 0.15 * min);
    var pad = (max - min) * 0.05 || 0.1;
    return Object.assign(base(), {
      grid: { left: 52, right: 14, top: 16, bottom: 44 },
      xAxis: log && xs.length && right > left ? logAxis(xNames[x], left, right) : axis({ type: "value", name: xNames[x], max: xs.length ? right : null, splitLine: { show: false },
        axisLabel: { color: color("soft"), formatter: brief, hideOverlap: true, showMaxLabel: false } }),
      yAxis: axis({ type: "value", name: y === "loss" ? "nats per token" : "bits per byte", nameGap: 36, min: +(min - pad).toPrecision(3), max: +(max + pad).toPrecision(3),
        axisLabel: { color: color("soft"), formatter: brief, showMinLabel: false, showMaxLabel: false } }),
      tooltip: Object.assign(base().tooltip, {
        trigger: "axis", axisPointer: { type: "line", snap: false, label: { show: false } },
        formatter: function (at) {
          var rows = at.filter(function (p) { return p.value; }).sort(function (a, b) { return a.value[1] - b.value[1]; });
          if (!rows.length) return "";
          var s = esc(xNames[x]) + " " + brief(rows[0].value[0]);
          rows.slice(0, 9).forEach(function (p) { s += "<br>" + p.marker + esc(p.seriesName) + " <b>" + p.value[1].toFixed(3) + "</b>"; });
          return s + (rows.length > 9 ? "<br>… " + (rows.length - 9) + " more" : "");
        }
      }),
      series: series
    });
  }

  function parallel(box) {
    var narrow = box.clientWidth < 700, axes = data.axes, text = color("soft");
    box.style.height = narrow ? 62 * (axes.length + 1) + 70 + "px" : "400px";
    var bits = data.trials.map(function (t) { return t.bits; }).filter(ok);
    var all = axes.concat([{ name: "bits per byte", low: bits[0], high: bits[0] }]), last = axes.length;
    bits.forEach(function (b) {
      all[last].low = Math.min(all[last].low, b);
      all[last].high = Math.max(all[last].high, b);
    });
    // Ranges are drawn from 0 to 1, so that all axes have their ticks at the same places.
    function unit(a, v) {
      if (v === null || (typeof v !== "string" && !ok(v))) return "-";
      if (a.words) return a.words.length > 1 ? a.words.indexOf(String(v)) / (a.words.length - 1) : 0.5;
      if (!(a.high > a.low)) return 0.5;
      return a.log ? Math.log(v / a.low) / Math.log(a.high / a.low) : (v - a.low) / (a.high - a.low);
    }
    function real(a, u) { return !ok(a.low) ? "" : brief(a.log ? a.low * Math.pow(a.high / a.low, u) : a.low + u * (a.high - a.low)); }
    var dims = all.map(function (a, i) {
      var d = { dim: i, name: a.name, inverse: i === last && !narrow, nameTruncate: { maxWidth: 200 },
        axisLabel: { color: text, fontSize: 10, interval: 0, textBorderColor: color("card"), textBorderWidth: 2 } };
      d.nameLocation = d.inverse ? "start" : "end";
      d.axisLabel.formatter = function (u) {
        if (!a.words) return real(a, u);
        var k = a.words.length > 1 ? u * (a.words.length - 1) : u === 0.5 ? 0 : -1, w = a.words[Math.round(k)];
        return w === undefined ? "" : w.length > 14 ? w.slice(0, 13) + "…" : w;
      };
      return Object.assign(d, { type: "value", min: 0, max: 1, interval: !a.words ? 0.25 : a.words.length > 1 ? 1 / (a.words.length - 1) : 0.5 });
    });
    function item(t) {
      return { name: t.id, value: t.values.concat([t.bits]).map(function (v, i) { return unit(all[i], v); }), trial: t,
        lineStyle: { color: t.winner ? color("accent") : ramp(t.bits), width: t.winner ? 3.5 : 1.6, opacity: t.winner ? 1 : ok(t.bits) ? 0.75 : 0.6, type: ok(t.bits) ? "solid" : "dashed" } };
    }
    var drawn = data.trials.slice().reverse().map(item); // the best on top
    return Object.assign(base(), {
      parallel: narrow ? { layout: "vertical", left: 28, right: 28, top: 40, bottom: 34 } : { left: 40, right: 60, top: 46, bottom: 24 },
      parallelAxis: dims.map(function (d, i) {
        return Object.assign(d, {
          nameGap: narrow ? 8 : i % 2 ? 24 : 10, nameTextStyle: Object.assign({ color: color("ink"), fontSize: 11 }, narrow ? { align: "right", verticalAlign: "bottom", padding: [0, -8, 14, 0] } : {}),
          axisLine: { lineStyle: { color: color("soft") } }, axisTick: { lineStyle: { color: color("soft") } }
        });
      }),
      tooltip: Object.assign(base().tooltip, {
        trigger: "item", formatter: function (p) {
          var s = "<b>" + esc(p.name) + "</b> " + esc(p.data.trial.status) + (ok(p.data.trial.bits) ? ", " + p.data.trial.bits.toFixed(4) + " bits per byte" : "");
          axes.forEach(function (a, i) {
            var v = p.data.trial.values[i];
            if (v !== null) s += "<br>" + esc(a.name) + " " + esc(typeof v === "number" ? brief(v) : v);
          });
          return s;
        }
      }),
      series: [{ type: "parallel", data: drawn, smooth: 0.05, inactiveOpacity: 0.05, emphasis: { lineStyle: { width: 4, opacity: 1 } } }]
    });
  }

  function importance(box) {
    var e = data.effects.slice().reverse();
    box.style.height = 26 * e.length + 60 + "px";
    return Object.assign(base(), {
      grid: { left: 14, right: 24, top: 6, bottom: 44, containLabel: true },
      xAxis: axis({ type: "value", name: "share of the variance", min: 0 }),
      yAxis: axis({ type: "category", data: e.map(function (x) { return x.name; }), axisLabel: { color: color("ink"), fontSize: 12 }, splitLine: { show: false } }),
      tooltip: Object.assign(base().tooltip, { trigger: "axis", axisPointer: { type: "shadow" }, formatter: function (p) {
        var x = e[p[0].dataIndex];
        return "<b>" + esc(x.name) + "</b><br>importance " + x.share.toFixed(3) + "<br>level of chance " + x.chance.toFixed(3);
      } }),
      series: [
        { type: "bar", barMaxWidth: 14, data: e.map(function (x) { return { value: x.share, itemStyle: { color: x.above ? color("c1") : color("c8"), opacity: x.above ? 1 : 0.65, borderRadius: [0, 3, 3, 0] } }; }) },
        { type: "scatter", symbol: "rect", symbolSize: [2.5, 18], itemStyle: { color: color("accent") }, data: e.map(function (x, i) { return [x.chance, i]; }) }
      ]
    });
  }

  function cost() {
    var x = get("cost-x").value, top = 0;
    var scored = data.trials.filter(function (t) { return ok(t.bits) && t[x] > 0; });
    scored.forEach(function (t) { top = Math.max(top, t.rung); });
    var byID = {};
    scored.forEach(function (t) { byID[t.id] = t; });
    var line = data.fronts[x].map(function (id) { return byID[id]; }).filter(Boolean);
    var all = scored.map(function (t) { return t[x]; }).concat(data.final && data.final[x] > 0 ? [data.final[x]] : []);
    var lo = Math.min.apply(null, all), hi = Math.max.apply(null, all), wide = hi / lo >= 8, names = { params: "parameters", seconds: "seconds of training" };
    return Object.assign(base(), {
      grid: { left: 52, right: 22, top: 26, bottom: 44 },
      xAxis: wide ? logAxis(names[x], lo / 1.2, hi * 1.2) : axis({ type: "value", scale: true, name: names[x], splitLine: { show: false } }),
      yAxis: axis({ type: "value", scale: true, name: "bits per byte", nameGap: 36 }),
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) {
        var t = p.data.trial;
        return t ? "<b>" + esc(t.id) + "</b> " + esc(t.status) + "<br>" + t.bits.toFixed(4) + " bits per byte<br>" + brief(t.params) + " parameters<br>" + brief(t.seconds) + " s" : "";
      } }),
      series: [
        { type: "line", step: "end", data: line.map(function (t) { return [t[x], t.bits]; }), symbol: "none", silent: true, lineStyle: { color: color("ink"), width: 1.2, type: "dashed" } },
        { type: "scatter", data: scored.map(function (t) {
          return { value: [t[x], t.bits], trial: t, symbolSize: t.rung === top ? 13 : 8, itemStyle: { color: ramp(t.bits), borderColor: color("card"), borderWidth: 1 },
            label: { show: line.indexOf(t) >= 0, formatter: function () { return t.id; }, position: "right", color: color("soft"), fontSize: 11 } };
        }), labelLayout: { hideOverlap: true } },
        { type: "scatter", symbol: star, symbolSize: 20, z: 6, itemStyle: { color: color("accent") },
          data: data.final && ok(data.final.bits) && data.final[x] > 0 ? [{ value: [data.final[x], data.final.bits], trial: data.final }] : [] }
      ]
    });
  }

  var star = "path://M0,-10L2.9,-3.2L10,-3.1L4.4,1.4L6.2,8.5L0,4.4L-6.2,8.5L-4.4,1.4L-10,-3.1L-2.9,-3.2Z";
  function goals() {
    var g = data.goals, x = +get("goal-x").value + 1;
    var line = g.points.filter(function (p) { return p.mark === "front" || p.mark === "knee"; }).sort(function (a, b) { return a.values[x] - b.values[x]; });
    var shown = g.points.concat(g.final ? [g.final] : []), lo = Infinity, hi = 0;
    shown.forEach(function (p) { lo = Math.min(lo, p.values[x]); hi = Math.max(hi, p.values[x]); });
    var marks = [];
    if (ok(g.limits[x]) && g.limits[x] <= 3 * hi) { marks.push({ xAxis: g.limits[x] }); hi = Math.max(hi, g.limits[x]); }
    return Object.assign(base(), {
      grid: { left: 52, right: 30, top: 26, bottom: 44 },
      xAxis: hi / lo >= 8 && lo > 0 ? logAxis(g.names[x], lo / 1.2, hi * 1.2) : axis({ type: "value", scale: true, name: g.names[x], splitLine: { show: false }, max: marks.length ? function (v) { return Math.max(v.max, hi * 1.02); } : null }),
      yAxis: axis({ type: "value", scale: true, name: "bits per byte", nameGap: 36 }),
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) {
        var t = p.data.point;
        return t ? "<b>" + esc(t.id) + "</b> " + esc(t.mark) + g.names.map(function (n, i) { return "<br>" + esc(n) + " " + esc(t.text[i]); }).join("") : "";
      } }),
      series: [
        { type: "line", data: line.map(function (p) { return [p.values[x], p.values[0]]; }), symbol: "none", silent: true, lineStyle: { color: color("ink"), width: 1.2, type: "dashed" },
          markLine: { silent: true, symbol: "none", label: { show: false }, lineStyle: { color: color("c4"), type: "dotted", width: 1.5 }, data: marks } },
        { type: "scatter", data: g.points.map(function (p) {
          var miss = p.mark === "misses";
          return { value: [p.values[x], p.values[0]], point: p, symbolSize: p.mark === "knee" ? 16 : p.mark === "front" ? 12 : 8,
            itemStyle: { color: miss ? "transparent" : ramp(p.values[0]), borderColor: miss ? color("c8") : p.mark === "knee" ? color("accent") : color("card"), borderWidth: p.mark === "knee" ? 3 : miss ? 2 : 1 },
            label: { show: line.indexOf(p) >= 0, formatter: function () { return p.id; }, position: "right", color: color("soft"), fontSize: 11 } };
        }), labelLayout: { hideOverlap: true } },
        { type: "scatter", symbol: star, symbolSize: 20, z: 6, itemStyle: { color: color("accent") }, data: g.final ? [{ value: [g.final.values[x], g.final.values[0]], point: g.final }] : [] }
      ]
    });
  }

  function volume() {
    var v = data.goals.volume;
    return Object.assign(base(), {
      grid: { left: 52, right: 22, top: 16, bottom: 44 },
      xAxis: axis({ type: "value", name: "results", minInterval: 1, splitLine: { show: false } }), yAxis: axis({ type: "value", scale: true, name: "hypervolume, share", nameGap: 36 }),
      tooltip: Object.assign(base().tooltip, { trigger: "axis", formatter: function (ps) { var q = v[ps[0].dataIndex]; return q.n + " results: <b>" + q.share.toFixed(3) + "</b><br>last of " + esc(q.id); } }),
      series: [{ type: "line", step: "end", symbol: "none", data: v.map(function (q) { return [q.n, q.share]; }), lineStyle: { color: color("c1"), width: 2 } }]
    });
  }

  // strip is one stacked bar.
  function strip(parts) {
    return Object.assign(base(), {
      grid: { left: 0, right: 0, top: 6, height: 34 },
      xAxis: { type: "value", show: false, max: "dataMax" }, yAxis: { type: "category", data: [""], show: false },
      legend: { top: 48, left: 0, icon: "roundRect", itemWidth: 12, itemHeight: 12, itemGap: 12, textStyle: { color: color("ink"), fontSize: 12 }, selectedMode: false,
        formatter: function (n) { var p = parts.filter(function (q) { return q.name === n; })[0]; return n + " " + p.text; } },
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) { return esc(p.seriesName) + " <b>" + esc(parts[p.seriesIndex].text) + "</b>"; } }),
      series: parts.map(function (p, i) { return { name: p.name, type: "bar", stack: "all", barWidth: 30, data: [p.value], itemStyle: { color: color("c" + (i % 8 + 1)), borderColor: color("card"), borderWidth: 1 } }; })
    });
  }

  function rules(box) {
    var r = data.rules.slice().reverse();
    box.style.height = 28 * r.length + 80 + "px";
    function bar(name, key, c) { return { name: name, type: "bar", stack: "rows", barMaxWidth: 16, itemStyle: { color: color(c) }, data: r.map(function (x) { return x[key]; }) }; }
    return Object.assign(base(), {
      legend: { top: 0, left: 0, icon: "roundRect", textStyle: { color: color("ink") } },
      grid: { left: 14, right: 20, top: 30, bottom: 40, containLabel: true },
      xAxis: axis({ type: "value", name: "rows", minInterval: 1 }),
      yAxis: axis({ type: "category", data: r.map(function (x) { return x.name; }), axisLabel: { color: color("ink") }, splitLine: { show: false } }),
      tooltip: Object.assign(base().tooltip, { trigger: "axis", axisPointer: { type: "shadow" } }),
      series: [bar("dropped", "dropped", "c4"), bar("repaired", "repaired", "c2")]
    });
  }

  // place is where a trial's value stands on an axis, 0 to 1; null where it has none.
  function place(a, v) {
    if (v === null || v === undefined) return null;
    if (a.words) {
      var k = a.words.indexOf(String(v));
      return k < 0 ? null : (k + 0.5) / a.words.length;
    }
    if (!ok(v)) return null;
    if (!(a.high > a.low)) return 0.5;
    return a.log ? Math.log(v / a.low) / Math.log(a.high / a.low) : (v - a.low) / (a.high - a.low);
  }
  // ruler is a chart's axis for place.
  function ruler(a, more) {
    var n = a.words ? a.words.length : 4, at = [];
    for (var i = 0; i < n + (a.words ? 0 : 1); i++) at.push(a.words ? (i + 0.5) / n : i / n);
    return axis(Object.assign({ type: "value", name: a.name, min: a.words ? 0 : -0.03, max: a.words ? 1 : 1.03, splitLine: { show: false }, axisTick: { customValues: at, lineStyle: { color: color("line") } },
      axisLabel: { color: color("soft"), hideOverlap: true, customValues: at, formatter: function (u) {
        if (a.words) {
          var w = a.words[Math.floor(u * n)] || "";
          return w.length > 14 ? w.slice(0, 13) + "…" : w;
        }
        return brief(a.log ? a.low * Math.pow(a.high / a.low, u) : a.low + u * (a.high - a.low));
      } } }, more));
  }
  function told(t, axes) {
    var s = "<b>" + esc(t.id) + "</b> " + esc(t.status) + (ok(t.bits) ? ", " + t.bits.toFixed(4) + " bits per byte" : "");
    axes.forEach(function (k) {
      var v = t.values[k];
      if (v !== null) s += "<br>" + esc(data.axes[k].name) + " " + esc(typeof v === "number" ? brief(v) : v);
    });
    return s;
  }
  function dotTip(axes) {
    return Object.assign(base().tooltip, { trigger: "item", formatter: function (p) { return p.data && p.data.trial ? told(p.data.trial, axes) : ""; } });
  }

  function slice() {
    var k = +get("slice-x").value, a = data.axes[k];
    return Object.assign(base(), {
      grid: { left: 52, right: 22, top: 16, bottom: 44 }, xAxis: ruler(a), yAxis: axis({ type: "value", scale: true, name: "bits per byte", nameGap: 36 }), tooltip: dotTip([k]),
      series: [{ type: "scatter", symbolSize: 9, data: data.trials.filter(function (t) { return ok(t.bits) && place(a, t.values[k]) !== null; }).map(function (t) {
        return { value: [place(a, t.values[k]), t.bits], trial: t, itemStyle: { color: t.winner ? color("accent") : ramp(t.bits), borderColor: color("card"), borderWidth: 1 } };
      }) }]
    });
  }

  function rank() {
    var x = +get("rank-x").value, y = +get("rank-y").value, a = data.axes[x], b = data.axes[y];
    var scored = data.trials.filter(function (t) { return ok(t.bits); }); // best first
    return Object.assign(base(), {
      grid: { left: 80, right: 22, top: 16, bottom: 44 }, xAxis: ruler(a), yAxis: ruler(b, { nameGap: 60 }), tooltip: dotTip([x, y]),
      series: [{ type: "scatter", symbolSize: 11, data: scored.map(function (t, i) {
        var u = scored.length > 1 ? i / (scored.length - 1) : 0, c = u < 0.5 ? mix(color("r1"), color("r2"), 2 * u) : mix(color("r2"), color("r3"), 2 * u - 1);
        return { value: [place(a, t.values[x]), place(b, t.values[y])], trial: t, itemStyle: { color: c, borderColor: t.winner ? color("accent") : color("card"), borderWidth: t.winner ? 3 : 1 } };
      }).filter(function (d) { return d.value[0] !== null && d.value[1] !== null; }).reverse() }]
    });
  }

  function edf() {
    var rungs = {};
    data.trials.forEach(function (t) { if (ok(t.bits)) (rungs[t.rung] = rungs[t.rung] || []).push(t.bits); });
    var names = Object.keys(rungs).sort(function (a, b) { return a - b; });
    return Object.assign(base(), {
      legend: { top: 0, left: 0, icon: "roundRect", textStyle: { color: color("ink") } },
      grid: { left: 52, right: 22, top: 34, bottom: 44 },
      xAxis: axis({ type: "value", scale: true, name: "bits per byte", splitLine: { show: false } }), yAxis: axis({ type: "value", name: "share of trials", min: 0, max: 1, nameGap: 36 }),
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) { return esc(p.seriesName) + "<br>" + (100 * p.value[1]).toFixed(0) + " % reached " + p.value[0].toFixed(4) + " or better"; } }),
      series: names.map(function (r, i) {
        var s = rungs[r].sort(function (a, b) { return a - b; }), c = color("c" + (i % 8 + 1));
        return { name: "rung " + r, type: "line", step: "end", symbolSize: 5, lineStyle: { color: c, width: 2 }, itemStyle: { color: c }, data: s.map(function (v, k) { return [v, (k + 1) / s.length]; }) };
      })
    });
  }

  function anova(box) {
    var names = data.axes.map(function (a) { return a.name; }), top = 0;
    box.style.height = Math.max(260, 26 * names.length + 130) + "px";
    data.anova.forEach(function (p) { top = Math.max(top, p.share); });
    var cells = [];
    data.anova.forEach(function (p) {
      [[p.a, p.b], [p.b, p.a]].forEach(function (at, i) {
        if (i && p.a === p.b) return;
        cells.push({ value: [at[0], at[1], p.share], itemStyle: { color: mix(color("card"), color(p.a === p.b ? "c1" : "c4"), top > 0 ? Math.sqrt(p.share / top) : 0), borderColor: color("grid"), borderWidth: 1 } });
      });
    });
    var side = { type: "category", data: names, splitLine: { show: false } };
    return Object.assign(base(), {
      grid: { left: 10, right: 20, top: 10, bottom: 10, containLabel: true },
      xAxis: axis(Object.assign({ axisLabel: { color: color("ink"), rotate: 40, interval: 0, fontSize: 11 } }, side)), yAxis: axis(Object.assign({ inverse: true, axisLabel: { color: color("ink"), interval: 0, fontSize: 11 } }, side)),
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) {
        var v = p.value;
        return (v[0] === v[1] ? esc(names[v[0]]) + " alone" : esc(names[v[0]]) + " with " + esc(names[v[1]])) + " <b>" + v[2].toFixed(3) + "</b>";
      } }),
      series: [{ type: "custom", data: cells, encode: { x: 0, y: 1 }, renderItem: function (params, api) {
        var at = api.coord([api.value(0), api.value(1)]), size = api.size([1, 1]);
        return { type: "rect", shape: { x: at[0] - size[0] / 2, y: at[1] - size[1] / 2, width: size[0], height: size[1] }, style: { fill: cells[params.dataIndex].itemStyle.color, stroke: color("grid"), lineWidth: 1 } };
      } }]
    });
  }

  function contour() {
    var c = data.contours[+get("contour-pair").value], a = data.axes[c.a], b = data.axes[c.b], lo = Infinity, hi = -Infinity, cells = [];
    c.z.forEach(function (row) { row.forEach(function (v) { if (ok(v)) { lo = Math.min(lo, v); hi = Math.max(hi, v); } }); });
    c.z.forEach(function (row, i) { row.forEach(function (v, j) { if (ok(v)) cells.push([c.x[i], c.y[j], v]); }); });
    function shade(v) {
      var u = hi > lo ? (v - lo) / (hi - lo) : 0;
      return u < 0.5 ? mix(color("r1"), color("r2"), 2 * u) : mix(color("r2"), color("r3"), 2 * u - 1);
    }
    return Object.assign(base(), {
      grid: { left: 80, right: 22, top: 16, bottom: 44 }, xAxis: ruler(a), yAxis: ruler(b, { nameGap: 60 }),
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) {
        return p.data.trial ? told(p.data.trial, [c.a, c.b]) : "expected " + (p.value[2] >= 0 ? "+" : "") + p.value[2].toFixed(3) + " bits per byte to the mean";
      } }),
      series: [
        { type: "custom", data: cells, encode: { x: 0, y: 1 }, renderItem: function (params, api) {
          var at = api.coord([api.value(0), api.value(1)]), size = api.size([1 / c.x.length, 1 / c.y.length]);
          return { type: "rect", shape: { x: at[0] - size[0] / 2, y: at[1] - size[1] / 2, width: size[0] + 0.5, height: size[1] + 0.5 }, style: { fill: shade(api.value(2)), opacity: 0.8 } };
        } },
        { type: "scatter", symbolSize: 8, z: 5, data: data.trials.filter(function (t) { return ok(t.bits) && place(a, t.values[c.a]) !== null && place(b, t.values[c.b]) !== null; }).map(function (t) {
          return { value: [place(a, t.values[c.a]), place(b, t.values[c.b])], trial: t, itemStyle: { color: t.winner ? color("accent") : ramp(t.bits), borderColor: color("ink"), borderWidth: 1 } };
        }) }
      ]
    });
  }

  function timeline(box) {
    var ids = [];
    data.spans.forEach(function (s) { if (ids.indexOf(s.id) < 0) ids.push(s.id); });
    box.style.height = Math.min(1600, 15 * ids.length + 80) + "px";
    var first = Math.min.apply(null, data.spans.map(function (s) { return s.from; }));
    return Object.assign(base(), {
      grid: { left: 14, right: 22, top: 6, bottom: 44, containLabel: true },
      xAxis: axis({ type: "value", name: "seconds of the job", min: Math.floor(first), splitLine: { show: true, lineStyle: { color: color("grid") } } }),
      yAxis: axis({ type: "category", data: ids, inverse: true, splitLine: { show: false }, axisLabel: { color: color("ink"), fontSize: 11, hideOverlap: true } }),
      tooltip: Object.assign(base().tooltip, { trigger: "item", formatter: function (p) {
        var s = data.spans[p.dataIndex];
        return "<b>" + esc(s.id) + "</b>" + (s.rung < 0 ? "" : " rung " + s.rung) + (s.failed ? ", failed" : "") + "<br>" + brief(s.from) + " to " + brief(s.to) + " s";
      } }),
      series: [{ type: "custom", encode: { x: [0, 1], y: 2 }, data: data.spans.map(function (s) { return [s.from, s.to, ids.indexOf(s.id)]; }), renderItem: function (params, api) {
        var s = data.spans[params.dataIndex], a = api.coord([api.value(0), api.value(2)]), b = api.coord([api.value(1), api.value(2)]), h = Math.min(14, api.size([0, 1])[1] * 0.7);
        return { type: "rect", shape: { x: a[0], y: a[1] - h / 2, width: Math.max(1.5, b[0] - a[0]), height: h, r: 2 },
          style: { fill: s.failed ? color("c8") : s.rung < 0 ? color("accent") : color("c" + (s.rung % 3 + 1)) } };
      } }]
    });
  }

  var drawings = [
    ["chart-curves", curves, data.curves.length], ["chart-parallel", parallel, data.axes.length], ["chart-importance", importance, data.effects.length],
    ["chart-cost", cost, scores.length], ["chart-parts", function () { return strip(data.parts); }, data.parts.length],
    ["chart-rules", rules, data.rules.length], ["chart-stages", function () { return strip(data.stages); }, data.stages.length],
    ["chart-slice", slice, data.axes.length && scores.length], ["chart-rank", rank, data.axes.length > 1 && scores.length], ["chart-edf", edf, scores.length],
    ["chart-anova", anova, data.anova.length], ["chart-contour", contour, data.contours.length], ["chart-timeline", timeline, data.spans.length],
    ["chart-goals", goals, data.goals && data.goals.points.length], ["chart-volume", volume, data.goals && data.goals.volume && data.goals.volume.length > 1]
  ];
  var charts = {};
  function draw(id) {
    drawings.forEach(function (d) {
      var box = get(d[0]);
      if (!box || (id && d[0] !== id)) return;
      if (!d[2]) {
        box.style.display = "none";
        return;
      }
      var option = d[1](box);
      if (!charts[d[0]]) charts[d[0]] = echarts.init(box, null, { renderer: "svg" });
      charts[d[0]].resize();
      charts[d[0]].setOption(option, true);
    });
  }
  if (get("curve-x")) get("curve-x").value = data.x;
  if (get("rank-y") && data.axes.length > 1) get("rank-y").value = "1";
  draw();
  [["slice-x", "chart-slice"], ["rank-x", "chart-rank"], ["rank-y", "chart-rank"], ["contour-pair", "chart-contour"], ["curve-x", "chart-curves"], ["curve-y", "chart-curves"], ["curve-log", "chart-curves"], ["curve-all", "chart-curves"], ["cost-x", "chart-cost"], ["goal-x", "chart-goals"]].forEach(function (c) {
    if (get(c[0])) get(c[0]).addEventListener("change", function () { draw(c[1]); });
  });
  dark.addEventListener("change", function () { draw(); });
  var width = window.innerWidth, timer;
  window.addEventListener("resize", function () {
    if (window.innerWidth === width) return; // a phone's address bar comes and goes
    width = window.innerWidth;
    clearTimeout(timer);
    timer = setTimeout(function () { draw(); }, 150);
  });

  // The leaderboard sorts by its headings.
  var board = get("board");
  if (board) board.querySelectorAll("thead th").forEach(function (th, col) {
    var button = document.createElement("button");
    button.type = "button";
    button.textContent = th.textContent;
    th.textContent = "";
    th.appendChild(button);
    button.addEventListener("click", function () {
      var up = th.getAttribute("aria-sort") !== "ascending", body = board.tBodies[0];
      board.querySelectorAll("thead th").forEach(function (o) { o.removeAttribute("aria-sort"); });
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      function key(row) {
        var c = row.cells[col], k = c.dataset.key;
        return k !== undefined ? Number(k) : c.textContent;
      }
      Array.from(body.rows).sort(function (a, b) {
        var x = key(a), y = key(b);
        var d = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return up ? d : -d;
      }).forEach(function (row) { body.appendChild(row); });
    });
  });
})();
