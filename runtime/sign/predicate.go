package sign

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/image"
)

// Types of predicates.
const (
	SPDX       = "https://spdx.dev/Document"
	CycloneDX  = "https://cyclonedx.org/bom"
	Provenance = "https://slsa.dev/provenance/v1"
)

// Predicates are the types that Sign attests.
func Predicates() []string { return []string{SPDX, CycloneDX, Provenance} }

const home = "https://github.com/open-autoglm/autoglm"

// predicate is one of them, as JSON.
func (f *Facts) predicate(kind string, now time.Time) ([]byte, error) {
	switch kind {
	case SPDX:
		return json.Marshal(f.spdx(now))
	case CycloneDX:
		var b bytes.Buffer
		err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).EncodeVersion(f.cyclonedx(now), cdx.SpecVersion1_6)
		return b.Bytes(), err
	case Provenance:
		return json.Marshal(f.provenance())
	}
	return nil, fmt.Errorf("predicate %s is not known", kind)
}

// spdx lists the modules that the image's runtime was built from (SPDX 2.3).
func (f *Facts) spdx(now time.Time) *spdx.Document {
	const none = "NOASSERTION"
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT", DocumentName: cmp.Or(f.Name, f.Title),
		DocumentNamespace: home + "/spdx/" + f.Digest.Hex,
		CreationInfo:      &spdx.CreationInfo{Created: now.UTC().Format(time.RFC3339), Creators: []common.Creator{{CreatorType: "Tool", Creator: "autoglm"}}},
	}
	add := func(p *spdx.Package, from common.ElementID, relation string) {
		p.PackageDownloadLocation, p.PackageLicenseConcluded, p.PackageLicenseDeclared, p.PackageCopyrightText = none, none, cmp.Or(p.PackageLicenseDeclared, none), none
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{
			RefA: common.DocElementID{ElementRefID: from}, RefB: common.DocElementID{ElementRefID: p.PackageSPDXIdentifier}, Relationship: relation,
		})
	}
	const imageID, runtimeID = "image", "runtime"
	add(&spdx.Package{
		PackageName: cmp.Or(f.Name, f.Title, "image"), PackageSPDXIdentifier: imageID, PackageVersion: f.Digest.String(), PrimaryPackagePurpose: "CONTAINER",
		PackageChecksums: []common.Checksum{{Algorithm: common.SHA256, Value: f.Digest.Hex}},
	}, "DOCUMENT", common.TypeRelationshipDescribe)
	for i, m := range f.modules() {
		p := &spdx.Package{
			PackageName: m.Path, PackageSPDXIdentifier: runtimeID, PackageVersion: m.Version, PrimaryPackagePurpose: "APPLICATION",
			PackageExternalReferences: []*spdx.PackageExternalReference{{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl(m)}},
		}
		if i == 0 {
			p.PackageLicenseDeclared = "Apache-2.0"
			for _, file := range f.Files {
				if file.Path == image.RuntimePath {
					p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: file.SHA256}}
				}
			}
			add(p, imageID, common.TypeRelationshipContains)
			continue
		}
		p.PackageSPDXIdentifier, p.PrimaryPackagePurpose = common.ElementID(fmt.Sprintf("module-%d", i)), "LIBRARY"
		if m.Sum != "" {
			p.PackageSourceInfo = "go.sum: " + m.Sum
		}
		add(p, runtimeID, common.TypeRelationshipDependsOn)
	}
	return doc
}

// cyclonedx describes the model (CycloneDX 1.6, machine-learning-model).
func (f *Facts) cyclonedx(now time.Time) *cdx.BOM {
	c := f.card()
	model := &cdx.Component{
		Type: cdx.ComponentTypeMachineLearningModel, BOMRef: "model", Name: cmp.Or(c.Name, f.Title, "model"), Description: c.Summary,
		ModelCard: &cdx.MLModelCard{ModelParameters: &cdx.MLModelParameters{
			Approach: &cdx.MLModelParametersApproach{Type: cdx.MLModelParametersApproachTypeSelfSupervised},
			Task:     c.Task, ArchitectureFamily: "llama", ModelArchitecture: "LlamaForCausalLM",
		}},
	}
	if c.License != "" {
		model.Licenses = &cdx.Licenses{{License: &cdx.License{Name: c.License}}}
	}
	var files []cdx.Component
	for _, file := range f.Files {
		if !strings.HasPrefix(file.Path, image.ModelPath+"/") {
			continue
		}
		hash := &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: file.SHA256}}
		if path.Ext(file.Path) == ".safetensors" && model.Hashes == nil {
			model.Hashes = hash
		}
		files = append(files, cdx.Component{Type: cdx.ComponentTypeFile, BOMRef: file.Path, Name: file.Path, Hashes: hash})
	}
	var datasets []cdx.MLDatasetChoice
	for i, d := range c.Data {
		ref := fmt.Sprintf("data-%d", i)
		data := cdx.Component{Type: cdx.ComponentTypeData, BOMRef: ref, Name: d.Name, Data: &[]cdx.ComponentData{{
			Type: cdx.ComponentDataTypeDataset, Name: d.Name,
			Contents: &cdx.ComponentDataContents{Properties: &[]cdx.Property{{Name: "files", Value: fmt.Sprint(d.Files)}, {Name: "bytes", Value: fmt.Sprint(d.Bytes)}}},
		}}}
		if d.SHA256 != "" {
			data.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: d.SHA256}}
		}
		if d.License != "" {
			data.Licenses = &cdx.Licenses{{License: &cdx.License{Name: d.License}}}
		}
		files = append(files, data)
		datasets = append(datasets, cdx.MLDatasetChoice{Ref: ref})
	}
	if len(datasets) > 0 {
		model.ModelCard.ModelParameters.Datasets = &datasets
	}
	var scores []cdx.MLPerformanceMetric
	for _, s := range c.Scores {
		scores = append(scores, cdx.MLPerformanceMetric{Type: s.Name, Value: fmt.Sprintf("%.6g", s.Value), Slice: s.On})
	}
	if len(scores) > 0 {
		model.ModelCard.QuantitativeAnalysis = &cdx.MLQuantitativeAnalysis{PerformanceMetrics: &scores}
	}
	if len(c.Limits) > 0 {
		model.ModelCard.Considerations = &cdx.MLModelCardConsiderations{TechnicalLimitations: &c.Limits}
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: now.UTC().Format(time.RFC3339), Component: model}
	bom.Components = &files
	return bom
}

// provenance is SLSA's (https://slsa.dev/spec/v1.0/provenance).
type provenance struct {
	BuildDefinition struct {
		BuildType            string              `json:"buildType"`
		ExternalParameters   external            `json:"externalParameters"`
		InternalParameters   internal            `json:"internalParameters"`
		ResolvedDependencies []resourceReference `json:"resolvedDependencies,omitempty"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version,omitempty"`
		} `json:"builder"`
		Byproducts []resourceReference `json:"byproducts,omitempty"`
	} `json:"runDetails"`
}

// external is what the user asked for.
type external struct {
	Job    string               `json:"job,omitempty"` // SHA-256
	Task   string               `json:"task,omitempty"`
	Seed   *uint64              `json:"seed,omitempty"`
	Search bundle.SearchSummary `json:"search"`
}

// internal is what the build came to.
type internal struct {
	Trial    string                 `json:"trial,omitempty"`
	Training bundle.TrainingSummary `json:"training"`
	Runtime  map[string]string      `json:"runtime,omitempty"` // settings of the Go build
}

type resourceReference struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

func (f *Facts) provenance() *provenance {
	c := f.card()
	p := &provenance{}
	d := &p.BuildDefinition
	d.BuildType = home + "/build/v1"
	d.ExternalParameters = external{Job: c.Job, Task: c.Task, Search: c.Search}
	if f.Card != nil {
		d.ExternalParameters.Seed = &c.Seed
	}
	d.InternalParameters = internal{Trial: c.Trial, Training: c.Training, Runtime: map[string]string{"go": f.Build.GoVersion}}
	for _, s := range f.Build.Settings {
		d.InternalParameters.Runtime[s.Key] = s.Value
	}
	for _, src := range c.Data {
		if src.SHA256 != "" {
			d.ResolvedDependencies = append(d.ResolvedDependencies, resourceReference{src.Name, map[string]string{"sha256": src.SHA256}})
		}
	}
	p.RunDetails.Builder.ID = home
	if len(c.Versions) > 0 {
		p.RunDetails.Builder.Version = map[string]string{}
		for _, v := range c.Versions {
			p.RunDetails.Builder.Version[v.Name] = v.Version
		}
	}
	for _, file := range f.Files {
		p.RunDetails.Byproducts = append(p.RunDetails.Byproducts, resourceReference{file.Path, map[string]string{"sha256": file.SHA256}})
	}
	return p
}
