package data

func pluginMain(string) int { return 0 }
