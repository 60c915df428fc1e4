package rest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func chromiumOf(t *testing.T) string {
	t.Helper()
	chromium := os.Getenv("AUTOGLM_CHROMIUM")
	if chromium == "" {
		if os.Getenv("AUTOGLM_REQUIRE") == "all" {
			t.Fatal("AUTOGLM_CHROMIUM is not set: name a chromium browser's executable")
		}
		t.Skip("AUTOGLM_CHROMIUM is not set")
	}
	return chromium
}

// tab is a page in Chromium, which a test looks at and types into by the DevTools protocol
// over two pipes (https://chromedevtools.github.io/devtools-protocol/, --remote-debugging-pipe).
type tab struct {
	t       *testing.T
	in      io.Writer
	out     *bufio.Reader
	session string
	id      int
	errors  []string // that the page's scripts threw
}

func browse(t *testing.T, chromium, url string) *tab {
	t.Helper()
	cmd := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--user-data-dir="+t.TempDir(), "--remote-debugging-pipe", "--window-size=900,1200", "about:blank")
	commands, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = []*os.File{commands, answers} // 3 and 4
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = commands.Close(), answers.Close()
	b := &tab{t: t, in: in, out: bufio.NewReader(out)}
	t.Cleanup(func() {
		_, _ = fmt.Fprintf(in, `{"id":0,"method":"Browser.close"}%c`, 0) // it may be gone
		_ = in.Close()
		_, _ = io.Copy(io.Discard, b.out)
		_ = cmd.Wait()
		_ = out.Close()
		if t.Failed() {
			t.Logf("chromium says:\n%s", log.String())
		}
	})
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var session struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	b.session = session.SessionID
	b.call("Runtime.enable", nil, nil)
	b.call("Log.enable", nil, nil)
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	return b
}

// call asks Chromium, and reads on until it answers.
func (b *tab) call(method string, params, answer any) {
	b.t.Helper()
	b.id++
	raw, err := json.Marshal(map[string]any{"id": b.id, "method": method, "params": params, "sessionId": b.session})
	if err == nil {
		_, err = b.in.Write(append(raw, 0))
	}
	if err != nil {
		b.t.Fatal(err)
	}
	for {
		raw, err := b.out.ReadBytes(0)
		if err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		var m struct {
			ID     int
			Method string
			Params json.RawMessage
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := json.Unmarshal(raw[:len(raw)-1], &m); err != nil {
			b.t.Fatal(err)
		}
		if m.Method == "Runtime.exceptionThrown" || m.Method == "Log.entryAdded" && bytes.Contains(m.Params, []byte(`"level":"error"`)) {
			b.errors = append(b.errors, string(m.Params))
		}
		if m.ID != b.id {
			continue
		}
		if m.Error != nil {
			b.t.Fatalf("%s: %s", method, m.Error.Message)
		}
		if answer != nil {
			if err := json.Unmarshal(m.Result, answer); err != nil {
				b.t.Fatal(err)
			}
		}
		return
	}
}

// eval is the value of an expression, whose promise it waits for.
func (b *tab) eval(expression string) any {
	b.t.Helper()
	var r struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &r)
	if r.ExceptionDetails != nil {
		b.t.Fatalf("%s: %s", expression, r.ExceptionDetails)
	}
	return r.Result.Value
}

// until waits in the page until a condition holds.
func (b *tab) until(condition string) {
	b.t.Helper()
	const within = 20 * time.Second
	ok := b.eval(fmt.Sprintf(`new Promise(done => {
		const end = performance.now() + %d;
		const look = () => { if (%s) done(true); else if (performance.now() > end) done(false); else setTimeout(look, 5); };
		look();
	})`, within.Milliseconds(), condition))
	if ok != true {
		b.t.Fatalf("after %v it doesn't hold that %s; the page says %q", within, condition, b.text("body"))
	}
}

func (b *tab) text(selector string) string {
	b.t.Helper()
	s, _ := b.eval(fmt.Sprintf(`document.querySelector(%q)?.innerText`, selector)).(string)
	return s
}

// click presses where an element is.
func (b *tab) click(selector string) {
	b.t.Helper()
	at, ok := b.eval(fmt.Sprintf(`(() => { const e = document.querySelector(%q); e.scrollIntoView(); const r = e.getBoundingClientRect(); return [r.x + Math.min(r.width, 40) / 2, r.y + Math.min(r.height, 20) / 2]; })()`, selector)).([]any)
	if !ok {
		b.t.Fatalf("no %s", selector)
	}
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		b.call("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1}, nil)
	}
}

// write types into a field.
func (b *tab) write(selector, text string) {
	b.t.Helper()
	b.click(selector)
	b.eval(fmt.Sprintf(`document.querySelector(%q).select()`, selector))
	b.call("Input.insertText", map[string]any{"text": text}, nil)
}

func (b *tab) wrong() []string { return b.errors }

// Somebody types, sends, sees the answer grow, stops it, asks again, and reads the card.
func TestPageAnswers(t *testing.T) {
	chromium := chromiumOf(t)
	f := start(t, true, nil)
	gate := <-f.gates
	b := browse(t, chromium, f.URL+"/")
	b.until(`document.querySelector('option[value="tiny"]')`)

	b.click("#card summary")
	b.until(`document.querySelector("#card dl").innerText.includes("apache-2.0")`)
	for _, want := range []string{"name", "Tiny", "task", "dialogue", "languages"} {
		if !strings.Contains(b.text("#card dl"), want) {
			t.Errorf("the card lacks %s: %s", want, b.text("#card dl"))
		}
	}

	b.write("#seed", "1")
	b.write("#text", "The quick brown fox")
	b.click("#send")
	const answer = `document.querySelector("#out .answer:last-child").textContent`
	b.until(`!document.getElementById("stop").disabled && document.querySelector("#out .own").textContent === "The quick brown fox"`)
	grown := 0 // how often there was more
	for seen := ""; grown < 3; {
		select {
		case gate.Permit <- struct{}{}: // one more token
		case <-time.After(20 * time.Second):
			t.Fatal("the model isn't asked: the answer is over")
		}
		if now := b.eval(answer).(string); now != seen {
			seen, grown = now, grown+1
		}
	}
	if b.eval(`document.getElementById("send").disabled`) != true {
		t.Error("the answer is over before it is stopped")
	}
	b.click("#stop")
	b.until(`document.getElementById("stop").disabled`)
	stopped := b.eval(answer).(string)
	gate.Open()
	wait(t, func() bool { return f.busy.Load() == 0 }) // the server notices
	if b.eval(answer) != stopped || stopped == "" || b.text("#out .wrong") != "" {
		t.Errorf("stopped at %q, then %q", stopped, b.text("#out"))
	}

	b.write("#text", "Then the others wake")
	b.click("#send")
	b.until(`document.getElementById("said").textContent.includes("generated in") && document.getElementById("stop").disabled`)
	if n := b.eval(`document.querySelectorAll("#out .own").length`); n != 2.0 {
		t.Errorf("%v turns", n)
	}
	if text := b.eval(answer).(string); text == "" {
		t.Error("the second answer is empty")
	}
	if len(b.wrong()) > 0 {
		t.Errorf("the page's scripts say %s", b.wrong())
	}
}
