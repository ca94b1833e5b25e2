from amtutorial.cli import main
raise SystemExit(main())
