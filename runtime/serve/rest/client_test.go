package rest

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// python runs a script of bench/peers with the interpreter that has the peers' clients.
func python(t *testing.T, script string, args ...string) []byte {
	t.Helper()
	path := os.Getenv("AUTOGLM_PYTHON")
	if path == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with openai and tritonclient to ask with"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	cmd := exec.CommandContext(t.Context(), path, append([]string{"../../../bench/peers/" + script}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.String())
	}
	return out
}

// OpenAI's own client understands every answer.
func TestOpenAIClient(t *testing.T) {
	f := start(t, false, nil)
	var got struct {
		Models       []string
		Model        string
		Completion   string
		Finish       string
		Usage        usage
		Streamed     string
		Chat         []string
		Logprobs     []int
		ChatStreamed []string `json:"chat_streamed"`
		ChatUsage    usage    `json:"chat_usage"`
		Shaped       struct{ Text, Finish, Error string }
		Errors       map[string]string
	}
	if err := json.Unmarshal(python(t, "openai_client.py", f.URL, "tiny", "256"), &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Models, []string{"tiny"}) || got.Model != "tiny" {
		t.Errorf("models %v, %s", got.Models, got.Model)
	}
	if got.Completion == "" || got.Completion != got.Streamed || got.Finish != "length" || got.Usage.Completion != 12 {
		t.Errorf("completion %q, streamed %q, %s, %+v", got.Completion, got.Streamed, got.Finish, got.Usage)
	}
	if len(got.Chat) != 2 || !slices.Equal(got.Chat, got.ChatStreamed) || !slices.Equal(got.Logprobs, []int{12, 12}) || got.ChatUsage.Completion != 24 {
		t.Errorf("chat %q, streamed %q, %v, %+v", got.Chat, got.ChatStreamed, got.Logprobs, got.ChatUsage)
	}
	for name, want := range map[string]string{
		"long": "400 context_length_exceeded None", "model": "404 model_not_found model", "field": "400 unknown_parameter temprature", "tools": "400 unsupported_parameter tools",
	} {
		if got.Errors[name] != want {
			t.Errorf("%s: %q, want %q", name, got.Errors[name], want)
		}
	}
	var person struct {
		Name string
		Age  int
		Tags []string
	}
	if err := json.Unmarshal([]byte(got.Shaped.Text), &person); got.Shaped.Error != "" || got.Shaped.Finish == "stop" && err != nil {
		t.Errorf("by a schema: %+v, %v", got.Shaped, err)
	}
}
